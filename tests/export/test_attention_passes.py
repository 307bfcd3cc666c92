"""The passes that prepare attention: heads, Transposes, the scale, quantizers of one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
from _helpers.onnx_graphs import (
    constant,
    fake_quantize,
    integers,
    model_of,
    run_ort,
    run_reference,
)

from mimiq_export.passes.fold_attention_scale import FoldAttentionScalePass
from mimiq_export.passes.merge_transposes import MergeTransposesPass
from mimiq_export.passes.node_marks import mark, marked_quantizer
from mimiq_export.passes.separate_projections import SeparateProjectionsPass
from mimiq_export.passes.share_quantizers import ShareQuantizersPass
from mimiq_export.passes.split_heads import SplitHeadsPass
from mimiq_export.passes.unsigned_codes import UnsignedCodesPass
from mimiq_runtime.grid import Grid

RANDOM = np.random.default_rng(4)
TOKENS, HEADS, CHANNELS = 5, 2, 4
WIDTH = HEADS * CHANNELS
FLOAT = ir.DataType.FLOAT


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def joint_projection(
    *, perm: tuple[int, ...] = (2, 0, 3, 1, 4), first: int = 0, extra_user: bool = False
) -> ir.Model:
    """What the capture makes of ``qkv.reshape(...).permute(2, 0, 3, 1, 4).unbind(0)``."""
    x = ir.val("x", FLOAT, ["n", TOKENS, 3 * WIDTH])
    five = ir.val("five", FLOAT, ["n", TOKENS, 3, HEADS, CHANNELS])
    turned = ir.val("turned", FLOAT, [3, "n", HEADS, TOKENS, CHANNELS])
    shape = integers("shape", [-1, TOKENS, 3, HEADS, CHANNELS])
    nodes = [
        ir.node("Reshape", [x, shape], outputs=[five], name="attn/Reshape"),
        ir.node("Transpose", [five], {"perm": perm}, outputs=[turned], name="attn/Transpose"),
    ]
    outputs = []
    axis = integers("axis", [0])
    for part in range(3):
        cut = ir.val(f"cut{part}", FLOAT, [1, "n", HEADS, TOKENS, CHANNELS])
        out = ir.val("qkv"[part], FLOAT, ["n", HEADS, TOKENS, CHANNELS])
        start = integers(f"start{part}", [part + first])
        end = integers(f"end{part}", [part + first + 1])
        nodes += [
            ir.node("Slice", [turned, start, end, axis], outputs=[cut], name=f"attn/Slice_{part}"),
            ir.node("Squeeze", [cut, axis], outputs=[out], name=f"attn/Squeeze_{part}"),
        ]
        outputs.append(out)
    return model_of(nodes, [x], [*outputs, five] if extra_user else outputs)


def test_a_joint_projection_is_split_before_it_is_turned() -> None:
    model = joint_projection()
    feeds = {"x": RANDOM.normal(size=(2, TOKENS, 3 * WIDTH)).astype(np.float32)}
    before = run_reference(model, feeds)
    assert SplitHeadsPass()(model).modified
    assert operators(model) == ["Split", *["Reshape", "Transpose"] * 3]
    assert [output.name for output in model.graph.outputs] == ["q", "k", "v"]
    for got, expected in zip(run_reference(model, feeds), before, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_shapes_inside_are_those_of_the_values() -> None:
    model = joint_projection()
    SplitHeadsPass()(model)
    shapes = {value.name: str(value.shape) for node in model.graph for value in node.outputs}
    assert shapes["attn/Split_output"] == f"[n,{TOKENS},{WIDTH}]"
    assert shapes["attn/Reshape_part1_output"] == f"[n,{TOKENS},{HEADS},{CHANNELS}]"
    assert shapes["k"] == f"[n,{HEADS},{TOKENS},{CHANNELS}]"


@pytest.mark.parametrize(
    "arguments",
    [{"perm": (2, 0, 1, 3, 4)}, {"first": 1}, {"extra_user": True}],
    ids=["other-order", "parts-not-from-zero", "five-dimensions-needed"],
)
def test_any_other_projection_is_left_alone(arguments: dict[str, object]) -> None:
    model = joint_projection(**arguments)
    before = operators(model)
    assert not SplitHeadsPass()(model).modified
    assert operators(model) == before


def two_transposes(*, extra_user: bool = False) -> ir.Model:
    x = ir.val("x", FLOAT, [2, 3, 4, 5])
    inner = ir.val("inner", FLOAT, [2, 4, 3, 5])
    y = ir.val("y", FLOAT, [2, 4, 5, 3])
    nodes = [
        ir.node("Transpose", [x], {"perm": [0, 2, 1, 3]}, outputs=[inner], name="first"),
        ir.node("Transpose", [inner], {"perm": [0, 1, 3, 2]}, outputs=[y], name="second"),
    ]
    return model_of(nodes, [x], [y, inner] if extra_user else [y])


def test_two_transposes_become_one() -> None:
    model = two_transposes()
    x = RANDOM.normal(size=(2, 3, 4, 5)).astype(np.float32)
    assert MergeTransposesPass()(model).modified
    (node,) = model.graph
    assert (node.name, tuple(node.attributes["perm"].as_ints())) == ("second", (0, 2, 3, 1))
    np.testing.assert_array_equal(run_reference(model, {"x": x})[0], x.transpose(0, 2, 3, 1))


def test_a_transpose_that_is_needed_in_between_stays() -> None:
    model = two_transposes(extra_user=True)
    assert not MergeTransposesPass()(model).modified
    assert operators(model) == ["Transpose", "Transpose"]


@dataclass(frozen=True)
class Projection:
    model: ir.Model
    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray


def scaled_part(factor: float, *, part: int = 0, shared_bias: bool = False) -> Projection:
    """``Split(x W + b)``, one part of it turned and multiplied by a number."""
    codes = RANDOM.integers(-8, 8, size=(6, 3 * WIDTH)).astype(np.int8)
    scale = RANDOM.uniform(0.01, 0.1, size=3 * WIDTH).astype(np.float32)
    bias = RANDOM.normal(size=3 * WIDTH).astype(np.float32)
    x = ir.val("x", FLOAT, ["n", TOKENS, 6])
    weight = ir.val("W", FLOAT, [6, 3 * WIDTH])
    values = {name: ir.val(name, FLOAT) for name in ("product", "joint", "heads", "turned", "y")}
    pieces = [ir.val(f"piece{index}", FLOAT) for index in range(3)]
    b = constant("b", bias)
    stored = ir.val("codes", const_value=ir.tensor(codes, name="codes"))
    nodes = [
        ir.node(
            "DequantizeLinear", [stored, constant("scale", scale)], {"axis": 1}, outputs=[weight]
        ),
        ir.node("MatMul", [x, weight], outputs=[values["product"]]),
        ir.node("Add", [values["product"], b], outputs=[values["joint"]]),
        ir.node("Split", [values["joint"]], {"axis": -1, "num_outputs": 3}, outputs=pieces),
        ir.node(
            "Reshape",
            [pieces[part], integers("shape", [-1, TOKENS, HEADS, CHANNELS])],
            outputs=[values["heads"]],
        ),
        ir.node("Transpose", [values["heads"]], {"perm": [0, 2, 1, 3]}, outputs=[values["turned"]]),
        ir.node("Mul", [values["turned"], constant("factor", factor)], outputs=[values["y"]]),
    ]
    nodes.append(ir.node("Neg", [values["y"]], outputs=[ir.val("z", FLOAT)]))
    outputs = [nodes[-1].outputs[0], *(piece for piece in pieces if piece is not pieces[part])]
    if shared_bias:
        nodes.append(ir.node("Neg", [b], outputs=[ir.val("other", FLOAT)]))
        outputs.append(nodes[-1].outputs[0])
    return Projection(model_of(nodes, [x], outputs), codes, scale, bias)


@pytest.mark.parametrize("part", [0, 1])
def test_the_scale_goes_into_the_columns_of_its_part(part: int) -> None:
    projection = scaled_part(0.125, part=part)
    model = projection.model
    feeds = {"x": RANDOM.normal(size=(2, TOKENS, 6)).astype(np.float32)}
    before = run_reference(model, feeds)
    assert FoldAttentionScalePass()(model).modified
    assert "Mul" not in operators(model)
    # A power of two: the very same numbers.
    for got, expected in zip(run_reference(model, feeds), before, strict=True):
        np.testing.assert_array_equal(got, expected)
    factors = np.ones(3 * WIDTH, np.float32)
    factors[part * WIDTH : (part + 1) * WIDTH] = 0.125
    values = model.graph.initializers
    np.testing.assert_array_equal(values["scale"].const_value.numpy(), projection.scale * factors)
    np.testing.assert_array_equal(values["b"].const_value.numpy(), projection.bias * factors)
    np.testing.assert_array_equal(values["codes"].const_value.numpy(), projection.codes)


@pytest.mark.parametrize(
    "projection",
    [scaled_part(1 / 48**0.5), scaled_part(-0.5), scaled_part(0.125, shared_bias=True)],
    ids=["not-a-power-of-two", "negative", "bias-used-elsewhere"],
)
def test_a_scale_that_cannot_be_folded_exactly_stays(projection: Projection) -> None:
    assert not FoldAttentionScalePass()(projection.model).modified
    assert "Mul" in operators(projection.model)


def quantized_twice(second_scale: float, second_qmax: int = 7) -> ir.Model:
    x = ir.val("x", FLOAT, [4])
    first = fake_quantize(x, constant("s", 0.1), quantizer="a", qmin=-8, qmax=7)
    second = fake_quantize(x, constant("t", second_scale), quantizer="b", qmin=-8, qmax=second_qmax)
    ends = [ir.val(name, FLOAT, [4]) for name in ("y", "z")]
    nodes = [
        first,
        second,
        ir.node("Neg", first.outputs, outputs=ends[:1]),
        ir.node("Abs", second.outputs, outputs=ends[1:]),
    ]
    return model_of(nodes, [x], ends)


def test_equal_quantizers_of_one_tensor_become_one() -> None:
    model = quantized_twice(0.1)
    feeds = {"x": RANDOM.normal(size=4).astype(np.float32)}
    before = run_reference(model, feeds)
    assert ShareQuantizersPass()(model).modified
    assert operators(model) == ["FakeQuantize", "Neg", "Abs"]
    np.testing.assert_array_equal(run_reference(model, feeds), before)


@pytest.mark.parametrize("arguments", [(0.2,), (0.1, 6)], ids=["scale", "grid"])
def test_quantizers_that_differ_stay(arguments: tuple[float, ...]) -> None:
    model = quantized_twice(*arguments)
    assert not ShareQuantizersPass()(model).modified
    assert operators(model).count("FakeQuantize") == 2


def joint_linear(
    *,
    bias: bool = True,
    per_channel: bool = True,
    axis: int = -1,
    is_quantized: bool = True,
    extra_user: bool = False,
    parts: int = 3,
) -> ir.Model:
    """``Split(x W + b)``, each part an output of its own."""
    x = ir.val("x", FLOAT, ["n", 6, 6])
    codes = RANDOM.integers(-128, 128, size=(6, 6)).astype(np.int8)
    scale = RANDOM.uniform(0.01, 0.1, size=6 if per_channel else ()).astype(np.float32)
    joint = ir.val("joint", FLOAT, ["n", 6, 6])
    product = ir.val("product", FLOAT, ["n", 6, 6]) if bias else joint
    weight = constant("W", RANDOM.normal(size=(6, 6)).astype(np.float32))
    nodes = []
    if is_quantized:
        weight = ir.val("W", FLOAT, [6, 6])
        zeros = np.zeros_like(scale, dtype=np.int8)
        operands = [
            ir.val("codes", const_value=ir.tensor(codes, name="codes")),
            constant("scale", scale),
            ir.val("zero_point", const_value=ir.tensor(zeros, name="zero_point")),
        ]
        named = {"axis": 1} if per_channel else {}
        dequantize = ir.node("DequantizeLinear", operands, named, outputs=[weight], name="W/DQ")
        mark(dequantize, "qkv.weight_quantizer", Grid.signed(8))
        nodes.append(dequantize)
    nodes.append(ir.node("MatMul", [x, weight], outputs=[product], name="qkv/MatMul"))
    if bias:
        b = constant("b", RANDOM.normal(size=6).astype(np.float32))
        nodes.append(ir.node("Add", [product, b], outputs=[joint], name="qkv/Add"))
    outputs = [ir.val("qkvr"[index], FLOAT, ["n", 6, 6 // parts]) for index in range(parts)]
    cut = {"axis": axis, "num_outputs": parts}
    nodes.append(ir.node("Split", [joint], cut, outputs=outputs, name="attn/Split"))
    return model_of(nodes, [x], [*outputs, product] if extra_user else outputs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_joint_linear_becomes_one_for_each_part(bias: bool, per_channel: bool) -> None:
    model = joint_linear(bias=bias, per_channel=per_channel)
    feeds = {"x": RANDOM.normal(size=(2, 6, 6)).astype(np.float32)}
    before = run_reference(model, feeds)
    assert SeparateProjectionsPass()(model).modified
    one = ["DequantizeLinear", "MatMul", *["Add"] * bias]
    assert operators(model) == one * 3
    assert [output.name for output in model.graph.outputs] == ["q", "k", "v"]
    for got, expected in zip(run_reference(model, feeds), before, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    marked = [marked_quantizer(node) for node in model.graph if node.op_type == one[0]]
    assert marked == ["qkv.weight_quantizer"] * 3


@pytest.mark.parametrize(
    "arguments",
    [{"axis": 1}, {"is_quantized": False}, {"extra_user": True}, {"parts": 4}],
    ids=["other-axis", "floating-point", "product-needed", "unequal-parts"],
)
def test_any_other_linear_is_left_alone(arguments: dict[str, object]) -> None:
    model = joint_linear(**arguments)  # type: ignore[arg-type]
    before = operators(model)
    assert not SeparateProjectionsPass()(model).modified
    assert operators(model) == before


def probabilities(zero_point: int, *, extra_user: bool = False) -> ir.Model:
    x, codes, y = ir.val("x", FLOAT, [7]), ir.val("codes", ir.DataType.INT8), ir.val("y", FLOAT)
    scale = constant("scale", np.float32(1 / 256))
    zero = ir.val("zero", const_value=ir.tensor(np.int8(zero_point), name="zero"))
    nodes = [
        ir.node("QuantizeLinear", [x, scale, zero], outputs=[codes]),
        ir.node("DequantizeLinear", [codes, scale, zero], outputs=[y]),
    ]
    return model_of(nodes, [x], [y, codes] if extra_user else [y])


def test_codes_from_zero_on_become_unsigned() -> None:
    model = probabilities(-128)
    x = np.asarray([0, 1, 128, 255, 0.5, 1.5, 512], dtype=np.float32) / 256  # two ties among them
    before = run_reference(model, {"x": x})[0]
    assert UnsignedCodesPass()(model).modified
    codes = next(iter(model.graph)).outputs[0]
    assert codes.dtype == ir.DataType.UINT8
    np.testing.assert_array_equal(run_reference(model, {"x": x})[0], before)
    np.testing.assert_array_equal(run_ort(model, {"x": x}, optimize=False)[0], before)
    np.testing.assert_allclose(before, np.clip(np.rint(x * 256), 0, 255) / 256, rtol=0)


@pytest.mark.parametrize("arguments", [{"zero_point": -120}, {"zero_point": 0}])
def test_codes_with_negative_ones_stay_signed(arguments: dict[str, int]) -> None:
    assert not UnsignedCodesPass()(probabilities(**arguments)).modified


def test_codes_that_something_else_takes_stay_signed() -> None:
    assert not UnsignedCodesPass()(probabilities(-128, extra_user=True)).modified
