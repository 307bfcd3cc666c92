"""Half precision: scales, constants, islands."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from _helpers.onnx_graphs import constant, fake_quantize, model_of, run_reference

from mimiq_export.fake_quantize import fake_quantizes
from mimiq_export.passes.half_precision import HalfPrecisionPass
from mimiq_export.passes.half_scales import HalfScalesPass
from mimiq_runtime.errors import OnnxModelError

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def normal(*shape: int, seed: int = 8) -> np.ndarray:
    """The same numbers in every call."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def converted(model: ir.Model) -> ir.Model:
    HalfPrecisionPass()(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def elementwise() -> ir.Model:
    x = ir.val("x", FLOAT, [4, 8])
    values = [ir.val(name, FLOAT, [4, 8]) for name in ("sum", "gelu", "y")]
    nodes = [
        ir.node("Add", [x, constant("b", normal(8))], outputs=[values[0]], name="add"),
        ir.node("Gelu", [values[0]], outputs=[values[1]], name="gelu"),
        ir.node("Mul", [values[1], values[0]], outputs=[values[2]], name="mul"),
    ]
    return model_of(nodes, [x], [values[2]])


def test_everything_but_the_interface_is_half() -> None:
    model = converted(elementwise())
    assert [node.op_type for node in model.graph] == ["Cast", "Add", "Gelu", "Mul", "Cast"]
    (x,), (y,) = model.graph.inputs, model.graph.outputs
    assert (x.name, x.dtype, y.name, y.dtype) == ("x", FLOAT, "y", FLOAT)
    for node in list(model.graph)[:-1]:
        assert [value.dtype for value in node.outputs] == [HALF]
    assert model.graph.initializers["b_half"].dtype == HALF


def test_half_precision_is_within_its_rounding() -> None:
    feeds = {"x": normal(4, 8, seed=9)}
    (before,) = run_reference(elementwise(), feeds)
    (after,) = run_reference(converted(elementwise()), feeds)
    # Four roundings, each of a part in 2048; in the tail of Gelu 1 + erf cancels.
    np.testing.assert_allclose(after, before, rtol=4 / 2048, atol=2e-3)


def normalised(kind: str) -> ir.Model:
    """A LayerNorm as one operator, or an RMS norm written out, of a residual stream."""
    x = ir.val("x", FLOAT, [4, 16])
    stream = ir.val("stream", FLOAT, [4, 16])
    y = ir.val("y", FLOAT, [4, 16])
    nodes = [ir.node("Add", [x, x], outputs=[stream], name="residual")]
    gain = constant("gain", 1 + 0.3 * normal(16))
    if kind == "layer":
        bias = constant("bias", normal(16, seed=9))
        nodes.append(
            ir.node(
                "LayerNormalization", [stream, gain, bias], {"axis": -1}, outputs=[y], name="norm"
            )
        )
        return model_of(nodes, [x], [y])
    names = ("square", "mean", "eps", "root", "inverse", "unit")
    values = {name: ir.val(name, FLOAT) for name in names}
    axes = ir.val("axes", const_value=ir.tensor(np.asarray([-1]), name="axes"))
    nodes += [
        ir.node("Pow", [stream, constant("two", 2.0)], outputs=[values["square"]], name="square"),
        ir.node("ReduceMean", [values["square"], axes], outputs=[values["mean"]], name="mean"),
        ir.node("Add", [values["mean"], constant("e", 1e-6)], outputs=[values["eps"]], name="eps"),
        ir.node("Sqrt", [values["eps"]], outputs=[values["root"]], name="root"),
        ir.node("Reciprocal", [values["root"]], outputs=[values["inverse"]], name="inverse"),
        ir.node("Mul", [stream, values["inverse"]], outputs=[values["unit"]], name="unit"),
        ir.node("Mul", [values["unit"], gain], outputs=[y], name="gain"),
    ]
    return model_of(nodes, [x], [y])


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_norm_of_large_values_does_not_overflow(kind: str) -> None:
    """Squares of 1400 are 30 times what half precision holds."""
    x = normal(4, 16)
    x[:, 3] = 700.0
    (before,) = run_reference(normalised(kind), {"x": x})
    with np.errstate(over="raise"):
        (after,) = run_reference(converted(normalised(kind)), {"x": x})
    np.testing.assert_allclose(after, before, rtol=2e-3, atol=2e-3)


def test_islands_are_single_and_what_follows_is_half() -> None:
    model = converted(normalised("rms"))
    types = {node.name: node.outputs[0].dtype for node in model.graph}
    single = {"square", "mean", "eps", "root", "inverse", "unit"}
    assert {name for name in single if types[name] != FLOAT} == set()
    assert (types["residual"], types["gain"]) == (HALF, HALF)
    # The residual stream is widened once for both of its users inside the island.
    assert [node.op_type for node in model.graph].count("Cast") == 4


def test_quantizers_have_half_scales_and_no_cast_before_the_product() -> None:
    x = ir.val("x", FLOAT, [4, 16])
    shapes = {"d": [4, 16], "w": [16, 8], "y": [4, 8]}
    values = {name: ir.val(name, FLOAT, shape) for name, shape in shapes.items()}
    codes = ir.val("codes", ir.DataType.INT8, [4, 16])
    scale, zero = constant("s", 0.05), ir.val("z", const_value=ir.tensor(np.int8(0), name="z"))
    stored = (40 * normal(16, 8)).astype(np.int8)
    weight = ir.val("stored", const_value=ir.tensor(stored, name="stored"))
    nodes = [
        ir.node("QuantizeLinear", [x, scale, zero], outputs=[codes], name="q"),
        ir.node("DequantizeLinear", [codes, scale, zero], outputs=[values["d"]], name="d"),
        ir.node(
            "DequantizeLinear",
            [weight, constant("t", np.full(8, 0.01))],
            {"axis": 1},
            outputs=[values["w"]],
            name="w",
        ),
        ir.node("MatMul", [values["d"], values["w"]], outputs=[values["y"]], name="product"),
    ]
    model = converted(model_of(nodes, [x], [values["y"]]))
    product = next(node for node in model.graph if node.op_type == "MatMul")
    for operand in product.inputs:
        dequantize = operand.producer()
        assert dequantize.op_type == "DequantizeLinear"
        assert dequantize.inputs[1].dtype == HALF


@pytest.mark.parametrize("number", [70000.0, -1e9, np.inf])
def test_a_constant_beyond_half_precision_is_refused_by_name(number: float) -> None:
    x = ir.val("x", FLOAT, [1])
    y = ir.val("y", FLOAT, [1])
    model = model_of([ir.node("Add", [x, constant("big", [number])], outputs=[y])], [x], [y])
    with pytest.raises(OnnxModelError, match=r"constant big holds .* 65504"):
        HalfPrecisionPass()(model)


def quantized(scale: float) -> ir.Model:
    x = ir.val("x", FLOAT, [3])
    node = fake_quantize(x, constant("s", scale), quantizer="blocks.0.fc1", qmin=-8, qmax=7)
    return model_of([node], [x], node.outputs)


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 3e-7, 2.0**-24, 6e4])
def test_scales_become_the_nearest_half(scale: float) -> None:
    model = quantized(scale)
    original = model.graph.initializers["s"].const_value
    HalfScalesPass()(model)
    (found,) = fake_quantizes(model)
    assert found.scale.dtype == np.float32
    candidates = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    best = candidates[np.abs(candidates - np.float32(scale)).argmin()]
    assert float(found.scale) == best
    # The tensor may be the torch model's own memory.
    assert original.numpy() == np.float32(scale)


@pytest.mark.parametrize("scale", [2.9e-8, 1e-12, 7e4])
def test_a_scale_that_half_precision_cannot_hold_is_refused_by_name(scale: float) -> None:
    with pytest.raises(OnnxModelError, match=r"Half precision holds .* blocks.0.fc1 has"):
        HalfScalesPass()(quantized(scale))
