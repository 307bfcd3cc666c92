"""The passes that prepare a graph for quantization, and the one that names it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from _helpers.onnx_graphs import constant, fake_quantize, model_of, run_reference

from mimiq_export.passes.idle_pads import RemoveIdlePadsPass
from mimiq_export.passes.readable_names import ReadableNamesPass
from mimiq_export.passes.split_gemm_bias import SplitGemmBiasPass
from mimiq_export.passes.transpose_before_quantizer import TransposeBeforeQuantizerPass

RANDOM = np.random.default_rng(2)


def gemm(*, quantized: bool = True, bias: bool = True, **attributes: float) -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, ["n", 6])
    y = ir.val("y", ir.DataType.FLOAT, ["n", 4])
    weight = constant("w", RANDOM.normal(size=(4, 6)))
    nodes = []
    if quantized:
        scale = constant("s", np.full(4, 0.1))
        nodes.append(fake_quantize(weight, scale, quantizer="h", qmin=-8, qmax=7, axis=0))
        weight = nodes[0].outputs[0]
    inputs = [x, weight, constant("b", RANDOM.normal(size=4))]
    nodes.append(
        ir.node(
            "Gemm",
            inputs if bias else inputs[:2],
            {"transB": 1, **attributes},
            outputs=[y],
            name="head/Gemm",
        )
    )
    return model_of(nodes, [x], [y])


def test_a_quantized_gemm_gives_its_bias_to_an_add() -> None:
    model = gemm()
    feeds = {"x": RANDOM.normal(size=(3, 6)).astype(np.float32)}
    (before,) = run_reference(model, feeds)
    assert SplitGemmBiasPass()(model).modified
    nodes = {node.op_type: node for node in model.graph}
    assert len(nodes["Gemm"].inputs) == 2
    assert nodes["Gemm"].attributes["transB"].as_int() == 1
    assert nodes["Add"].inputs[1].name == "b"
    assert (nodes["Gemm"].name, nodes["Add"].name) == ("head/Gemm", "head/Add")
    np.testing.assert_array_equal(run_reference(model, feeds)[0], before)


@pytest.mark.parametrize(
    "arguments",
    [{"quantized": False}, {"bias": False}, {"beta": 0.5}],
    ids=["not-quantized", "no-bias", "scaled-bias"],
)
def test_any_other_gemm_is_left_alone(arguments: dict[str, object]) -> None:
    model = gemm(**arguments)
    assert not SplitGemmBiasPass()(model).modified
    assert "Add" not in {node.op_type for node in model.graph}


def transposed(*, extra_user: bool = False, axis: int | None = None) -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, [2, 3, 4])
    y = ir.val("y", ir.DataType.FLOAT, [2, 4, 3])
    scale = constant("s", 0.25 if axis is None else np.full(3, 0.25))
    quantized = fake_quantize(x, scale, quantizer="key", qmin=-8, qmax=7, axis=axis)
    turn = ir.node(
        "Transpose", quantized.outputs, {"perm": [0, 2, 1]}, outputs=[y], name="attn/Transpose"
    )
    outputs = [y, *quantized.outputs] if extra_user else [y]
    return model_of([quantized, turn], [x], outputs)


def test_a_transpose_moves_in_front_of_the_quantizer() -> None:
    model = transposed()
    feeds = {"x": RANDOM.normal(size=(2, 3, 4)).astype(np.float32)}
    (before,) = run_reference(model, feeds)
    assert TransposeBeforeQuantizerPass()(model).modified
    assert [node.op_type for node in model.graph] == ["Transpose", "FakeQuantize"]
    assert [node.name for node in model.graph] == ["attn/Transpose", "key/FakeQuantize"]
    assert model.graph.outputs[0].name == "y"
    np.testing.assert_array_equal(run_reference(model, feeds)[0], before)


@pytest.mark.parametrize("arguments", [{"extra_user": True}, {"axis": 1}], ids=["shared", "axis"])
def test_a_transpose_that_must_not_move_stays(arguments: dict[str, object]) -> None:
    model = transposed(**arguments)
    assert not TransposeBeforeQuantizerPass()(model).modified
    assert [node.op_type for node in model.graph] == ["FakeQuantize", "Transpose"]


def padded(amounts: list[int], *, known: bool = True, last: bool = False) -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, ["n", 6])
    y = ir.val("y", ir.DataType.FLOAT, ["n", None])
    sides = ir.val("sides", ir.DataType.INT64, [4])
    if known:
        sides.const_value = ir.tensor(np.array(amounts), name="sides")
    pad = ir.node("Pad", [x, sides], outputs=[y if last else ir.val("wide")], name="block/Pad")
    nodes = [pad]
    if not last:
        nodes.append(ir.node("Neg", pad.outputs, outputs=[y], name="block/Neg"))
    return model_of(nodes, [x] if known else [x, sides], [y])


def test_a_pad_that_adds_nothing_is_removed() -> None:
    model = padded([0, 0, 0, 0])
    assert RemoveIdlePadsPass()(model).modified
    assert [node.op_type for node in model.graph] == ["Neg"]
    x = RANDOM.normal(size=(3, 6)).astype(np.float32)
    np.testing.assert_array_equal(run_reference(model, {"x": x})[0], -x)


@pytest.mark.parametrize(
    "arguments",
    [
        {"amounts": [0, 0, 0, 2]},
        {"amounts": [0] * 4, "known": False},
        {"amounts": [0] * 4, "last": True},
    ],
    ids=["pads", "unknown", "output"],
)
def test_any_other_pad_stays(arguments: dict[str, object]) -> None:
    model = padded(**arguments)
    assert not RemoveIdlePadsPass()(model).modified
    assert "Pad" in {node.op_type for node in model.graph}


def test_names_follow_modules_and_never_repeat() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [2])
    nodes = [ir.node("Neg", [x], name="node_1", outputs=[ir.val("val_1")])]
    for index in (2, 3):
        operands = [nodes[-1].outputs[0], constant(f"val_{index}0", 1.0)]
        nodes.append(
            ir.node("Add", operands, name=f"node_{index}", outputs=[ir.val(f"val_{index}")])
        )
    for node in nodes[1:]:
        scopes = "['', 'blocks.0', 'blocks.0.attn', 'add']"
        node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    model = model_of(nodes, [x], nodes[-1].outputs)
    ReadableNamesPass()(model)
    assert [node.name for node in nodes] == ["Neg", "blocks.0.attn/Add", "blocks.0.attn/Add_1"]
    assert [node.outputs[0].name for node in nodes] == [
        "Neg_output",
        "blocks.0.attn/Add_output",
        "val_3",  # an output of the graph keeps its name
    ]
    assert set(model.graph.initializers) == {
        "blocks.0.attn/Add_constant",
        "blocks.0.attn/Add_1_constant",
    }


def test_parameters_keep_their_names() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [2])
    add = ir.node("Add", [x, constant("cls_token", 1.0)], name="n", outputs=[ir.val("inner")])
    last = ir.node("Add", [add.outputs[0], constant("index_1", 1.0)], outputs=[ir.val("y")])
    model = model_of([add, last], [x], last.outputs)
    ReadableNamesPass(keep={"cls_token"})(model)
    assert set(model.graph.initializers) == {"cls_token", "Add_1_constant"}
