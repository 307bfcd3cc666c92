from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from _helpers.onnx_graphs import Array, copy_of, run_ort, run_reference
from _helpers.tiny_students import Exported, images, tiny_student, tiny_teacher

from mimiq_export.export_run import export_model
from mimiq_export.lint.linters import lint_model
from mimiq_export.options import ExportOptions
from mimiq_export.passes.node_marks import mark
from mimiq_export.passes.pack_int4_weights import PackInt4WeightsPass
from mimiq_export.record import list_floating_point_products, list_quantizers
from mimiq_export.targets.registry import TARGETS
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.grid import Grid
from mimiq_runtime.session import open_session

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_export.provenance import ExportProvenance

LAYOUT: dict[str, tuple[dict[str, object], list[list[int]]]] = {
    "Transpose": ({"perm": [0, 2, 1]}, []),
    "Reshape": ({}, [[0, 4]]),
    "Unsqueeze": ({}, [[1]]),
    "Squeeze": ({}, [[1]]),
    "Slice": ({}, [[0], [1], [1]]),
}
"""Attributes, and the constants behind the data, for an input of (n, 1, 4)."""


@pytest.fixture(scope="module", params=["w4a4", "w3a8"])
def both(
    request: pytest.FixtureRequest, exported_w4a4: Exported, provenance: ExportProvenance
) -> tuple[ir.Model, ir.Model]:
    """The unpacked and the packed export of one student; a8 has zero points other than 0."""
    if request.param == "w4a4":
        plain = exported_w4a4.graph
    else:
        student = tiny_student(3, 8, skewed=True)
        plain = export_model(student, target="ort-cpu", provenance=provenance)
    packed = copy_of(plain)
    assert PackInt4WeightsPass()(packed).modified
    return plain, packed


def operators_that_run(model: ir.Model, feeds: dict[str, Array], folder: Path) -> Counter[str]:
    path = folder / "optimized.onnx"
    run_ort(model, feeds, optimized_path=path)
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_logits_and_kernels_are_those_of_the_unpacked_model(
    both: tuple[ir.Model, ir.Model], tmp_path: Path
) -> None:
    plain, packed = both
    feeds = {"images": images(5).numpy()}
    np.testing.assert_array_equal(run_ort(packed, feeds)[0], run_ort(plain, feeds)[0])
    operators = operators_that_run(packed, feeds, tmp_path)
    assert operators == operators_that_run(plain, feeds, tmp_path)
    # In integers, all of them: a product in floating point would be called MatMul or Gemm.
    assert operators["MatMulIntegerToFloat"] + operators["QLinearMatMul"] == 13
    assert operators["QGemm"] == 1
    assert operators.keys().isdisjoint({"Cast", "MatMul", "Gemm", "Conv", "MatMulNBits"})


def test_openvino_computes_the_same_in_integers(
    both: tuple[ir.Model, ir.Model], tmp_path: Path
) -> None:
    logits, products = [], []
    for name, model in zip(("plain", "packed"), both, strict=True):
        path = tmp_path / f"{name}.onnx"
        ir.save(model, path)
        with open_session("openvino", path, threads=1) as session:
            logits.append(session.run(images(5).numpy()))
            products.append(session.info.products)
    np.testing.assert_array_equal(*logits)
    # All weights; skewed grids of 8 bits leave some products of attention in floating point.
    assert products[1] == products[0]
    assert products[1]["i8"] >= 1 + 2 * 4 + 1


def test_each_byte_holds_two_codes(both: tuple[ir.Model, ir.Model]) -> None:
    """The nibbles are taken apart by hand: the first code is the lower one, in two's complement."""
    plain, packed = (
        {tensor.name: tensor for tensor in ir.to_proto(model).graph.initializer} for model in both
    )
    small = [name for name, tensor in packed.items() if tensor.data_type == onnx.TensorProto.INT4]
    assert len(small) == 8
    for name in small:
        expected = onnx.numpy_helper.to_array(plain[name])
        stored = np.frombuffer(packed[name].raw_data, dtype=np.uint8).astype(np.int64)
        codes = np.stack([stored & 15, stored >> 4], axis=1).ravel()[: expected.size]
        np.testing.assert_array_equal(
            np.where(codes > 7, codes - 16, codes).reshape(expected.shape), expected
        )
        assert len(packed[name].raw_data) == (expected.size + 1) // 2
    # First and last layer have 8 bits here.
    others = {name for name in plain if name.endswith("weight_quantizer/codes")} - set(small)
    assert others == {
        "patch_embed.proj.weight_quantizer/codes",
        "head.weight_quantizer/codes",
    }


def test_the_file_is_valid_and_described(both: tuple[ir.Model, ir.Model]) -> None:
    packed = both[1]
    proto = ir.to_proto(packed)
    onnx.checker.check_model(proto, full_check=True)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 21)]
    unpacked_rows, packed_rows = (list_quantizers(model) for model in both)
    assert Counter(row.stored_as for row in packed_rows) == {"int4": 8, "int8": 20}
    assert [row.model_copy(update={"stored_as": "int8"}) for row in packed_rows] == unpacked_rows
    assert list_floating_point_products(packed) == []
    assert lint_model(packed, "ort-cpu") == []


@pytest.mark.parametrize("zero_point", [0, -112])
@pytest.mark.parametrize("operator", LAYOUT)
def test_a_layout_operator_behind_a_quantizer_still_loads(operator: str, zero_point: int) -> None:
    """ONNX Runtime 1.32 refuses these graphs at opset 21 with int8 codes."""
    model = graph_with_layout(operator, zero_point)
    plain = graph_with_layout(operator, zero_point)
    PackInt4WeightsPass()(model)
    rng = np.random.default_rng(1)
    x = (20 * rng.standard_normal((3, 1, 4))).astype(np.float32)
    optimized = run_ort(model, {"x": x})[0]
    # Opset 20, and no optimization: ONNX Runtime's kernels one by one, and ONNX's reference.
    np.testing.assert_array_equal(optimized, run_ort(plain, {"x": x}, optimize=False)[0])
    np.testing.assert_allclose(optimized, run_reference(plain, {"x": x})[0], rtol=1e-6)
    codes = next(node for node in model.graph if node.op_type == "QuantizeLinear").outputs[0]
    assert codes.dtype == ir.DataType.UINT8


def graph_with_layout(operator: str, zero_point: int) -> ir.Model:
    attributes, constants = LAYOUT[operator]
    x = ir.val("x", ir.DataType.FLOAT, ["n", 1, 4])
    quantizer = [value_of("scale", np.float32(0.25)), value_of("zero", np.int8(zero_point))]
    weight = np.array([-8, 7, 3], dtype=np.int8)
    nodes = [
        ir.node("QuantizeLinear", [x, *quantizer], name="q"),
        ir.node(
            "DequantizeLinear",
            [
                value_of("w/codes", weight),
                value_of("w/scale", np.float32(0.5)),
                value_of("w/zero_point", np.int8(0)),
            ],
            name="w",
        ),
    ]
    codes = nodes[0].outputs[0]
    codes.name, codes.dtype = "codes", ir.DataType.INT8
    mark(nodes[1], "w", Grid.signed(4))
    nodes.append(ir.node("DequantizeLinear", [codes, *quantizer], name="dq"))
    inputs = [
        value_of(f"c{index}", np.array(value, dtype=np.int64))
        for index, value in enumerate(constants)
    ]
    nodes.append(ir.node(operator, [nodes[2].outputs[0], *inputs], attributes, name="layout"))
    largest = ir.node("ReduceMax", [nodes[1].outputs[0]], {"keepdims": 0}, name="largest")
    y = ir.val("y", ir.DataType.FLOAT)
    nodes += [largest, ir.node("Mul", [nodes[3].outputs[0], largest.outputs[0]], outputs=[y])]
    values = {value for node in nodes for value in node.inputs if value is not None}
    graph = ir.Graph(
        [x],
        [y],
        nodes=nodes,
        initializers=sorted(
            (value for value in values if value.const_value is not None),
            key=lambda value: value.name or "",
        ),
        opset_imports={"": 20},
        name="small",
    )
    return ir.Model(graph, ir_version=9)


def value_of(name: str, array: Array) -> ir.Value:
    return ir.val(name, const_value=ir.tensor(np.asarray(array), name=name))


def test_a_model_without_small_weights_is_refused(exported_teacher: Exported) -> None:
    with pytest.raises(InvalidInputError, match="needs weights of at most 4 bits"):
        PackInt4WeightsPass()(copy_of(exported_teacher.graph))


@pytest.mark.parametrize("target", sorted(TARGETS.keys() - {"ort-cpu", "openvino"}))
def test_a_target_that_was_not_seen_to_compute_in_integers_is_refused(
    target: str, provenance: ExportProvenance
) -> None:
    options = ExportOptions(packed_int4=True)
    with pytest.raises(InvalidInputError, match=f"target {target}, because .* --packed-int4"):
        export_model(tiny_teacher(), target=target, provenance=provenance, options=options)
