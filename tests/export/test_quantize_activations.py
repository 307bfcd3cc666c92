from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
import torch
from _helpers.onnx_graphs import constant, fake_quantize, model_of, run_ort, run_reference

from mimiq_calib.quantizers.quantizer import Quantizer
from mimiq_export.passes.quantize_activations import QuantizeActivationsPass
from mimiq_runtime.errors import OnnxModelError
from mimiq_runtime.grid import Grid
from mimiq_runtime.quantization_table import TensorKind

GRIDS = {
    **{f"signed{bits}": Grid.signed(bits) for bits in (2, 3, 4, 7, 8)},
    **{f"unsigned{bits}": Grid.unsigned(bits) for bits in (2, 4, 7, 8)},
    "lopsided": Grid(-128, 7),
    "skewed8": Grid.skewed(8, 32),
    "mostly-negative8": Grid.skewed(8, 230),
    # Moved, and still ends before the container does.
    "moved-with-room": Grid(-10, 200),
}
# The last three: half precision's smallest subnormal, a subnormal, and one that makes huge ranges.
SCALES = [1.0, 0.1, 1 / 3, 0.007, 2.0**-24, 3e-40, 1e30]


@dataclass(frozen=True)
class Lowered:
    before: ir.Model
    after: ir.Model


def quantized_graph(grid: Grid, scale: object, producer: str | None = None) -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, ["n"])
    y = ir.val("y", ir.DataType.FLOAT, ["n"])
    nodes, inner = [], x
    if producer is not None:
        inner = ir.val("inner", ir.DataType.FLOAT, ["n"])
        nodes.append(ir.node(producer, [x], outputs=[inner]))
    nodes.append(
        fake_quantize(
            inner, constant("s", scale), quantizer="q", qmin=grid.qmin, qmax=grid.qmax, output=y
        )
    )
    return model_of(nodes, [x], [y])


def lower(grid: Grid, scale: object, producer: str | None = None) -> Lowered:
    after = quantized_graph(grid, scale, producer)
    assert QuantizeActivationsPass()(after).modified
    return Lowered(quantized_graph(grid, scale, producer), after)


def adversarial(grid: Grid, scale: float) -> np.ndarray:
    """Ties, their neighbours on both sides, the grid's ends and far beyond, zeros, subnormals."""
    codes = np.arange(grid.qmin - 3, grid.qmax + 4, dtype=np.float32)
    steps = np.concatenate([codes, codes + np.float32(0.5)]) * np.float32(scale)
    around = [np.nextafter(steps, np.float32(side)) for side in (-np.inf, np.inf)]
    far = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-39, 3.4e38, -3.4e38, np.inf, -np.inf], np.float32)
    random = np.random.default_rng(0).normal(size=500).astype(np.float32) * np.float32(scale)
    with np.errstate(over="ignore"):
        return np.concatenate([steps, *around, far, random * np.float32(2 * grid.qmax)])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_codes_are_those_of_the_torch_quantizer_for_every_float(grid: Grid, scale: float) -> None:
    x = adversarial(grid, scale)
    quantizer = Quantizer("q", TensorKind.ACTIVATION, 8, grid)
    quantizer.scale.data = torch.tensor(scale)
    codes, y = run_ort(lower(grid, scale).after, {"x": x}, outputs=["q/codes", "y"], optimize=False)
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes, quantizer.codes(torch.from_numpy(x)).numpy())
    with torch.no_grad():
        np.testing.assert_array_equal(y, quantizer(torch.from_numpy(x)).numpy())
    assert (codes.min(), codes.max()) == (grid.stored.qmin, grid.stored.qmax)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_the_graph_means_the_same_before_and_after(grid: Grid) -> None:
    graphs = lower(grid, 0.1)
    x = adversarial(grid, 0.1)
    # The reference casts quotients to int32 before it saturates: it is wrong about larger ones.
    x = x[np.abs(x) < 1e6]
    (before,) = run_reference(graphs.before, {"x": x})
    (after,) = run_reference(graphs.after, {"x": x})
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("grid", "producer", "bounds"),
    [
        (Grid.signed(8), None, None),
        (Grid.signed(4), None, ("q/lower", "q/upper")),
        (Grid.unsigned(7), None, ("q/lower", "")),
        (Grid.unsigned(8), None, None),
        (Grid.skewed(8, 32), None, None),
        (Grid.skewed(4, 2), None, ("q/lower", "q/upper")),
        (Grid(-10, 200), None, ("q/lower", "")),
        (Grid(-200, 10), None, ("", "q/upper")),
        (Grid(-10, 200), "Softmax", None),
        (Grid(-128, 7), None, ("", "q/upper")),
        (Grid.unsigned(7), "Softmax", None),
        (Grid.unsigned(8), "Softmax", None),
        (Grid.unsigned(4), "Softmax", ("", "q/upper")),
        (Grid.unsigned(7), "Tanh", ("q/lower", "")),
    ],
    ids=[
        "int8",
        "int4",
        "uint7",
        "uint8",
        "skewed8",
        "skewed4",
        "moved-down-with-room",
        "moved-up-with-room",
        "moved-softmax",
        "lopsided",
        "uint7-softmax",
        "uint8-softmax",
        "uint4-softmax",
        "uint7-tanh",
    ],
)
def test_only_bounds_that_can_be_passed_are_clipped(
    grid: Grid, producer: str | None, bounds: tuple[str, str] | None
) -> None:
    nodes = {node.op_type: node for node in lower(grid, 0.25, producer).after.graph}
    if bounds is None:
        assert "Clip" not in nodes
    else:
        inputs = [value.name if value else "" for value in nodes["Clip"].inputs[1:]]
        assert inputs == list(bounds)
    assert nodes["QuantizeLinear"].name == "q/QuantizeLinear"
    assert nodes["DequantizeLinear"].name == "q/DequantizeLinear"


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_zero_point_is_the_offset_in_int8_shared_by_both_nodes(grid: Grid) -> None:
    nodes = {node.op_type: node for node in lower(grid, 0.25).after.graph}
    quantize, dequantize = nodes["QuantizeLinear"], nodes["DequantizeLinear"]
    assert quantize.inputs[1:] == dequantize.inputs[1:]
    zero = quantize.inputs[2].const_value.numpy()
    assert (zero.dtype, zero.shape, int(zero)) == (np.int8, (), grid.offset)


@pytest.mark.parametrize("scale", [0.0, -0.1, np.nan, np.inf, 3e38])
def test_an_impossible_scale_is_refused_by_name(scale: float) -> None:
    with pytest.raises(OnnxModelError, match=r"scale of q must be positive"):
        QuantizeActivationsPass()(quantized_graph(Grid.signed(4), scale))


def test_a_scale_per_channel_is_refused_by_name() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [2])
    node = fake_quantize(x, constant("s", [1.0, 2.0]), quantizer="q", qmin=-8, qmax=7, axis=0)
    with pytest.raises(OnnxModelError, match="q has one scale a channel"):
        QuantizeActivationsPass()(model_of([node], [x], node.outputs))


def test_a_scale_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(OnnxModelError, match=r"scale of q must have the shape \(\); got \(2,\)"):
        QuantizeActivationsPass()(quantized_graph(Grid.signed(4), [1.0, 2.0]))


def test_two_quantizers_of_one_name_are_refused() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [2])
    first = fake_quantize(x, constant("s", 1.0), quantizer="q", qmin=-8, qmax=7)
    second = fake_quantize(first.outputs[0], constant("t", 1.0), quantizer="q", qmin=-8, qmax=7)
    with pytest.raises(OnnxModelError, match="Two quantizers of the model are called q"):
        QuantizeActivationsPass()(model_of([first, second], [x], second.outputs))
