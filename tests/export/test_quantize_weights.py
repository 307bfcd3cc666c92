from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import pytest
from _helpers.onnx_graphs import Array, constant, fake_quantize, model_of, run_ort, run_reference

from mimiq_export.passes.quantize_weights import QuantizeWeightsPass
from mimiq_runtime.errors import OnnxModelError
from mimiq_runtime.grid import Grid

RANDOM = np.random.default_rng(1)
SCALES = np.array([0.5, 0.1, 1 / 3, 0.02], np.float32)


def linear(
    weight: np.ndarray, *, transposed: bool, grid: Grid, scale: Array = SCALES, axis: int | None = 0
) -> ir.Model:
    """``x @ weight.T`` as a Linear is captured, or ``x @ weight`` without the Transpose."""
    rows, columns = weight.shape
    x = ir.val("x", ir.DataType.FLOAT, ["n", columns if transposed else rows])
    y = ir.val("y", ir.DataType.FLOAT, ["n", rows if transposed else columns])
    quantized = fake_quantize(
        constant("w", weight),
        constant("s", scale),
        quantizer="fc.weight_quantizer",
        qmin=grid.qmin,
        qmax=grid.qmax,
        axis=axis,
    )
    nodes = [quantized]
    operand = quantized.outputs[0]
    if transposed:
        nodes.append(ir.node("Transpose", [operand], {"perm": [1, 0]}))
        operand = nodes[-1].outputs[0]
    nodes.append(ir.node("MatMul", [x, operand], outputs=[y]))
    return model_of(nodes, [x], [y])


def lower(model: ir.Model) -> dict[str, ir.Node]:
    assert QuantizeWeightsPass()(model).modified
    common_passes.RemoveUnusedNodesPass()(model)
    return {node.op_type: node for node in model.graph}


def ties_and_more(columns: int) -> np.ndarray:
    """Whole and half steps of every row, beyond the grid on both sides, and random weights."""
    steps = np.arange(-columns // 2, columns // 2, dtype=np.float32)[:columns] / 2
    return np.where(RANDOM.random((4, columns)) < 0.7, steps, RANDOM.normal(size=columns)).astype(
        np.float32
    ) * SCALES.reshape(-1, 1)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "as-is"])
def test_the_product_means_the_same_before_and_after(bits: int, transposed: bool) -> None:
    arguments = {"transposed": transposed, "grid": Grid.signed(bits)}
    weight = ties_and_more(40)
    feeds = {"x": RANDOM.normal(size=(3, 40 if transposed else 4)).astype(np.float32)}
    (before,) = run_reference(linear(weight, **arguments), feeds)
    model = linear(weight, **arguments)
    nodes = lower(model)
    (after,) = run_reference(model, feeds)
    np.testing.assert_array_equal(after, before)
    # ONNX Runtime sums in another order than numpy: a few units in the last place of the terms.
    # Its optimization is off: it would round the floating-point activations to int8 (MatMulNBits).
    np.testing.assert_allclose(run_ort(model, feeds, optimize=False)[0], before, atol=1e-5)
    assert set(nodes) == {"DequantizeLinear", "MatMul"}


def test_a_transpose_is_carried_out_and_the_axis_moves_along() -> None:
    weight = ties_and_more(40)
    model = linear(weight, transposed=True, grid=Grid.signed(4))
    node = lower(model)["DequantizeLinear"]
    codes, scale, zero_point = (value.const_value.numpy() for value in node.inputs)
    expected = np.clip(np.rint(weight / SCALES[:, None]), -8, 7).T
    np.testing.assert_array_equal(codes, expected)
    assert (codes.dtype, codes.shape) == (np.int8, (40, 4))
    np.testing.assert_array_equal(scale, SCALES)
    np.testing.assert_array_equal(zero_point, np.zeros(4, np.int8), strict=True)
    assert node.attributes["axis"].as_int() == 1
    assert node.name == "fc.weight_quantizer/DequantizeLinear"
    assert set(model.graph.initializers) == {
        f"fc.weight_quantizer/{part}" for part in ("codes", "scale", "zero_point")
    }


def test_the_axis_is_written_even_where_it_is_zero() -> None:
    node = lower(linear(ties_and_more(8), transposed=False, grid=Grid.signed(4)))
    assert node["DequantizeLinear"].attributes["axis"].as_int() == 0


def test_one_scale_in_all_has_no_axis() -> None:
    model = linear(
        ties_and_more(8), transposed=True, grid=Grid.signed(4), scale=np.float32(0.1), axis=None
    )
    feeds = {"x": RANDOM.normal(size=(3, 8)).astype(np.float32)}
    (before,) = run_reference(model, feeds)
    node = lower(model)["DequantizeLinear"]
    assert "axis" not in node.attributes
    np.testing.assert_array_equal(run_reference(model, feeds)[0], before)


def test_a_transpose_that_is_not_alone_stays() -> None:
    model = linear(ties_and_more(8), transposed=True, grid=Grid.signed(4))
    quantized = next(node for node in model.graph if node.op_type == "FakeQuantize")
    extra = ir.node("Neg", [quantized.outputs[0]])
    model.graph.append(extra)
    extra.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(extra.outputs[0])
    feeds = {"x": RANDOM.normal(size=(3, 8)).astype(np.float32)}
    before = run_reference(model, feeds)
    nodes = lower(model)
    assert "Transpose" in nodes
    assert nodes["DequantizeLinear"].attributes["axis"].as_int() == 0
    for ours, theirs in zip(run_reference(model, feeds), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_convolution_keeps_its_output_channels_on_axis_zero() -> None:
    weight = RANDOM.normal(size=(4, 3, 2, 2)).astype(np.float32)
    x = ir.val("x", ir.DataType.FLOAT, ["n", 3, 4, 4])
    y = ir.val("y", ir.DataType.FLOAT, ["n", 4, 2, 2])

    def build() -> ir.Model:
        quantized = fake_quantize(
            constant("w", weight), constant("s", SCALES), quantizer="c", qmin=-8, qmax=7, axis=0
        )
        convolution = ir.node("Conv", [x, quantized.outputs[0]], {"strides": [2, 2]}, outputs=[y])
        return model_of([quantized, convolution], [x], [y])

    feeds = {"x": RANDOM.normal(size=(2, 3, 4, 4)).astype(np.float32)}
    model = build()
    (before,) = run_reference(model, feeds)
    node = lower(model)["DequantizeLinear"]
    assert node.attributes["axis"].as_int() == 0
    np.testing.assert_array_equal(run_reference(model, feeds)[0], before)


def test_one_weight_under_two_quantizers_gives_two_constants() -> None:
    weight = constant("w", ties_and_more(4))
    x = ir.val("x", ir.DataType.FLOAT, ["n", 4])
    first, second = (
        fake_quantize(weight, constant(f"{q}.s", SCALES * f), quantizer=q, qmin=-8, qmax=7, axis=0)
        for q, f in (("a", 1.0), ("b", 2.0))
    )
    products = [ir.node("MatMul", [x, node.outputs[0]]) for node in (first, second)]
    for product in products:
        product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    outputs = [product.outputs[0] for product in products]
    model = model_of([first, second, *products], [x], outputs)
    feeds = {"x": np.eye(4, dtype=np.float32)}
    before = run_reference(model, feeds)
    lower(model)
    assert {"a/codes", "b/codes"} < set(model.graph.initializers)
    assert "w" not in model.graph.initializers
    for ours, theirs in zip(run_reference(model, feeds), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_weight_that_is_not_a_number_is_refused_by_name() -> None:
    weight = np.full((4, 4), np.nan, np.float32)
    model = linear(weight, transposed=True, grid=Grid.signed(4))
    with pytest.raises(OnnxModelError, match=r"weight of fc\.weight_quantizer"):
        QuantizeWeightsPass()(model)


def test_activations_are_left_alone() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [2])
    node = fake_quantize(x, constant("s", 1.0), quantizer="q", qmin=-8, qmax=7)
    model = model_of([node], [x], node.outputs)
    assert not QuantizeWeightsPass()(model).modified
    assert [node.op_type for node in model.graph] == ["FakeQuantize"]
