"""Grids that leave int8, held without a zero point."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from _helpers.onnx_graphs import constant, fake_quantize, model_of, run_ort, run_reference

from mimiq_export.fake_quantize import fake_quantizes
from mimiq_export.passes.quantize_activations import QuantizeActivationsPass
from mimiq_export.passes.shift_beside_product import ShiftBesideProductPass
from mimiq_export.passes.shift_into_bias import ShiftIntoBiasPass
from mimiq_runtime.errors import OnnxModelError
from mimiq_runtime.grid import Grid

FLOAT = ir.DataType.FLOAT
ROWS, IN, OUT = 40, 24, 6
GRIDS = {"unsigned": Grid.unsigned(8), "skewed": Grid.skewed(8, 16), "room": Grid(-10, 200)}
SCALE = np.float32(0.037)


def inputs(grid: Grid) -> np.ndarray:
    """Values all over the grid and beyond both ends, none within 2^-10 of a tie."""
    steps = np.random.default_rng(1).uniform(grid.qmin - 20, grid.qmax + 20, size=(ROWS, IN))
    near_a_tie = np.abs(steps - np.floor(steps) - 0.5) < 2.0**-10
    return ((steps + 2.0**-8 * near_a_tie) * SCALE).astype(np.float32)


def linear(grid: Grid, *, kind: str = "MatMul", bias: bool = True, both: bool = False) -> ir.Model:
    """A quantized Linear whose weights are quantized already, as the passes before leave it."""
    random = np.random.default_rng(2)
    turned = kind == "Gemm"
    codes = random.integers(-128, 128, size=(OUT, IN) if turned else (IN, OUT)).astype(np.int8)
    scale = random.uniform(0.001, 0.01, size=OUT).astype(np.float32)
    x = ir.val("x", FLOAT, ["n", IN])
    weight = ir.val("W", FLOAT, codes.shape)
    product, y = ir.val("product", FLOAT, ["n", OUT]), ir.val("y", FLOAT, ["n", OUT])
    quantize = fake_quantize(
        x, constant("s", SCALE), quantizer="fc2.input_quantizer", qmin=grid.qmin, qmax=grid.qmax
    )
    stored = ir.val("codes", const_value=ir.tensor(codes, name="codes"))
    nodes = [
        quantize,
        ir.node(
            "DequantizeLinear",
            [stored, constant("scale", scale)],
            {"axis": 0 if turned else 1},
            outputs=[weight],
        ),
        ir.node(
            kind,
            [quantize.outputs[0], weight],
            {"transB": 1} if turned else {},
            outputs=[product if bias else y],
            name=f"fc2/{kind}",
        ),
    ]
    if bias:
        vector = constant("b", random.normal(size=OUT))
        nodes.append(ir.node("Add", [vector, product], outputs=[y], name="fc2/Add"))
    outputs = [y]
    if both:
        z = ir.val("z", FLOAT, ["n", OUT])
        nodes.append(
            ir.node("MatMul", [quantize.outputs[0], weight], outputs=[z], name="fc3/MatMul")
        )
        outputs.append(z)
    return model_of(nodes, [x], outputs)


def lowered(model: ir.Model, *, shifted: bool) -> ir.Model:
    if shifted:
        assert ShiftIntoBiasPass()(model).modified
    QuantizeActivationsPass()(model)
    return model


@pytest.mark.parametrize(
    "arguments",
    [{}, {"bias": False}, {"kind": "Gemm"}, {"both": True}],
    ids=["matmul", "without-bias", "gemm", "two-products"],
)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_the_bias_takes_the_shift_out(grid: Grid, arguments: dict[str, object]) -> None:
    feeds = {"x": inputs(grid)}
    codes = "fc2.input_quantizer/codes"
    names = ["y", "z", codes] if "both" in arguments else ["y", codes]
    plain = run_ort(
        lowered(linear(grid, **arguments), shifted=False), feeds, outputs=names, optimize=False
    )
    model = lowered(linear(grid, **arguments), shifted=True)
    shifted = run_ort(model, feeds, outputs=names, optimize=False)
    # The very codes that a zero point stores, to both ends of the container.
    np.testing.assert_array_equal(shifted[-1], plain[-1])
    assert (shifted[-1].min(), shifted[-1].max()) == (grid.stored.qmin, grid.stored.qmax)
    zero_points = [
        node.inputs[2].const_value.numpy()
        for node in model.graph
        if node.op_type in {"DequantizeLinear", "QuantizeLinear"} and len(node.inputs) == 3
    ]
    assert [int(zero) for zero in zero_points] == [0, 0]
    # Sums of products up to 30 times larger than the result cancel in single precision.
    for got, expected in zip(shifted[:-1], plain[:-1], strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def test_the_shifted_graph_means_the_same_in_the_reference() -> None:
    grid = Grid.unsigned(8)
    feeds = {"x": inputs(grid)}
    (before,) = run_reference(linear(grid), feeds)
    (after,) = run_reference(lowered(linear(grid), shifted=True), feeds)
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-5)


def test_the_bias_is_computed_from_the_quantized_weight() -> None:
    model = linear(Grid.unsigned(8))
    constants = {name: value.const_value for name, value in model.graph.initializers.items()}
    codes, scale, bias = (constants[name].numpy() for name in ("codes", "scale", "b"))
    ShiftIntoBiasPass()(model)
    slow = [
        float(bias[n])
        + 128 * float(SCALE) * sum(int(codes[k, n]) * float(scale[n]) for k in range(IN))
        for n in range(OUT)
    ]
    got = model.graph.initializers["fc2/bias_without_shift"].const_value.numpy()
    np.testing.assert_allclose(got, slow, rtol=1e-6)


def test_a_grid_within_the_container_is_left_alone() -> None:
    model = linear(Grid.skewed(4, 2))
    assert not ShiftIntoBiasPass()(model).modified
    assert not ShiftBesideProductPass()(model).modified


def attention(grid: Grid, *, side: int = 0) -> ir.Model:
    """Probabilities times values; the other operand is quantized to 8 bits, signed."""
    x = ir.val("p", FLOAT, ["n", 3, 7, 7])
    v = ir.val("v", FLOAT, ["n", 3, 7, 7])
    y = ir.val("y", FLOAT, ["n", 3, 7, 7])
    probabilities = fake_quantize(
        x, constant("s", SCALE), quantizer="attn.p", qmin=grid.qmin, qmax=grid.qmax
    )
    values = fake_quantize(v, constant("t", 0.02), quantizer="attn.v", qmin=-128, qmax=127)
    operands = [probabilities.outputs[0], values.outputs[0]]
    operands = operands[::-1] if side else operands
    matmul = ir.node("MatMul", operands, outputs=[y], name="attn/MatMul_1")
    return model_of([probabilities, values, matmul], [x, v], [y])


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_a_sum_over_the_values_takes_the_shift_out(grid: Grid) -> None:
    random = np.random.default_rng(5)
    p = inputs(grid).reshape(-1)[: 2 * 3 * 49].reshape(2, 3, 7, 7)
    feeds = {"p": p, "v": random.normal(size=p.shape).astype(np.float32)}
    plain = attention(grid)
    (before,) = run_reference(plain, feeds)
    QuantizeActivationsPass()(plain)
    shifted = attention(grid)
    assert ShiftBesideProductPass()(shifted).modified
    (unlowered,) = run_reference(shifted, feeds)
    QuantizeActivationsPass()(shifted)
    results = [
        run_ort(model, feeds, outputs=["y", "attn.p/codes"], optimize=False)
        for model in (plain, shifted)
    ]
    np.testing.assert_array_equal(results[1][1], results[0][1])
    # Single precision, where up to 128 steps are added and taken away again.
    for got in (unlowered, run_reference(shifted, feeds)[0], results[1][0]):
        np.testing.assert_allclose(got, before, rtol=0, atol=2e-5)


def test_only_inputs_beside_a_tie_can_get_another_code() -> None:
    """The Add rounds to a part of 2^-17 of a step: the docstring says 2^-16."""
    grid = Grid.unsigned(8)
    model = attention(grid)
    ShiftBesideProductPass()(model)
    QuantizeActivationsPass()(model)
    steps = np.arange(0, 254, dtype=np.float64) + 0.5
    away = np.concatenate([steps - 2.0**-15, steps + 2.0**-15])
    away = np.resize(away, 3 * 7 * 7 * 4).reshape(4, 3, 7, 7)
    p = (away * np.float64(SCALE)).astype(np.float32)
    (codes,) = run_ort(
        model,
        {"p": p, "v": np.zeros_like(p)},
        outputs=["attn.p/codes"],
        optimize=False,
    )[:1]
    np.testing.assert_array_equal(codes, np.rint(away) - 128)


@pytest.mark.parametrize("side", [1], ids=["right-operand"])
def test_a_shift_that_nothing_takes_out_is_refused_by_name(side: int) -> None:
    with pytest.raises(OnnxModelError, match=r"attn.p has the codes 0..255, .* zero point"):
        ShiftBesideProductPass()(attention(Grid.unsigned(8), side=side))


def test_quantizers_keep_their_names() -> None:
    model = linear(Grid.unsigned(8))
    ShiftIntoBiasPass()(model)
    (found,) = fake_quantizes(model)
    assert (found.quantizer, found.grid) == ("fc2.input_quantizer", Grid(-128, 127))
    assert [node.name for node in model.graph][:2] == [
        "fc2.input_quantizer/Shift",
        "fc2.input_quantizer/FakeQuantize",
    ]
