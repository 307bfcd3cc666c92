"""Whole models: what the ONNX file computes against the torch model that it was made from."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from _helpers.onnx_graphs import Array, run_ort, run_reference
from _helpers.tiny_students import Exported, images
from torch import nn

from mimiq_calib.conversion.convert import quantizers_of
from mimiq_calib.conversion.coverage import list_products
from mimiq_calib.engine_arithmetic.convert import in_engine_arithmetic
from mimiq_runtime.grid import CONTAINER_MAX, CONTAINER_MIN
from mimiq_runtime.quantization_table import TensorKind

if TYPE_CHECKING:
    from pathlib import Path


def torch_logits(model: nn.Module, batch: int) -> Array:
    with torch.no_grad():
        return model(images(batch)).numpy()


def assert_same_logits(exported: Exported, logits: Array, batch: int) -> None:
    """Equal but for codes that flip at a tie.

    Engines sum in another order than torch, so an activation that lies within the last bits of a
    tie may take the neighbouring code, which shifts others. Flips can only move the logits by a
    part of what quantization itself moves them by: a wrong grid, scale or axis moves them more.
    """
    expected = torch_logits(exported.torch_model, batch)
    quantization = np.abs(expected - torch_logits(exported.original, batch)).max()
    error = np.abs(logits - expected).max(axis=1)
    assert error.max() <= 0.1 * quantization
    # Flips are rare and stay within their image: all images but one agree to single precision.
    np.testing.assert_array_less(np.sort(error)[:-1], 1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "as-written"])
def test_onnx_runtime_gives_the_students_logits(
    exported: Exported, batch: int, optimize: bool
) -> None:
    feeds = {"images": images(batch).numpy()}
    (logits,) = run_ort(exported.graph, feeds, optimize=optimize)
    assert logits.shape == (batch, 10)
    assert_same_logits(exported, logits, batch)


def test_onnx_runtime_gives_the_bits_of_the_student_in_engine_arithmetic(
    exported: Exported,
) -> None:
    """Integer sums have no order: only kernels of floating-point functions are left to differ.

    On a processor with AVX-512 those are imitated to the last bit, but for softmax, which could
    flip a code; on another one an image may differ.
    """
    (logits,) = run_ort(exported.graph, {"images": images(5).numpy()})
    expected = torch_logits(in_engine_arithmetic(exported.torch_model), 5)
    assert (logits == expected).all(axis=1).sum() >= 4


@pytest.mark.parametrize("batch", [1, 2])
def test_the_onnx_reference_gives_the_students_logits(exported: Exported, batch: int) -> None:
    (logits,) = run_reference(exported.graph, {"images": images(batch).numpy()})
    assert_same_logits(exported, logits, batch)


def test_every_quantizer_gives_the_codes_of_torch(exported: Exported) -> None:
    """From the very same input, code by code; with equal inputs ties cannot tell them apart."""
    nodes = {node.name: node for node in exported.graph.graph}
    quantizers = {
        quantizer.name: quantizer
        for quantizer in quantizers_of(exported.torch_model)
        if quantizer.kind is TensorKind.ACTIVATION
    }
    inputs = {
        name: next(
            nodes[f"{name}/{step}"].inputs[0].name
            for step in ("Clip", "QuantizeLinear")
            if f"{name}/{step}" in nodes
        )
        for name in quantizers
    }
    wanted = [*inputs.values(), *(f"{name}/codes" for name in inputs)]
    feeds = {"images": images(5).numpy()}
    wanted = [name for name in wanted if name not in feeds]
    values = run_ort(exported.graph, feeds, outputs=wanted, optimize=False)
    value = feeds | dict(zip(wanted, values, strict=True))
    # Probabilities of 8 bits are moved into the container in every model: they are not signed.
    moved = {name for name, q in quantizers.items() if q.grid.offset and q.grid.is_signed}
    ends_of_moved: set[int] = set()
    for name, quantizer in quantizers.items():
        codes = value[f"{name}/codes"]
        expected = quantizer.codes(torch.from_numpy(value[inputs[name]])).numpy()
        np.testing.assert_array_equal(codes, expected, err_msg=name)
        stored = quantizer.grid.stored
        used = {stored.qmin, stored.qmax} & set(codes.flat) - {quantizer.grid.offset}
        if name in moved:
            ends_of_moved |= used
        # The scales of this model clip on purpose: each grid is used to one of its ends. But
        # skewed grids clip so many negative values that ranges behind them shrink.
        assert used or moved, name
    assert ends_of_moved == ({CONTAINER_MIN, CONTAINER_MAX} if moved else set())


def test_weights_are_the_codes_of_torch_in_int8(exported: Exported) -> None:
    dequantize = {
        node.name.removesuffix("/DequantizeLinear"): node
        for node in exported.graph.graph
        if node.op_type == "DequantizeLinear"
    }
    for quantizer in quantizers_of(exported.torch_model):
        if quantizer.kind is TensorKind.WEIGHT:
            layer = exported.torch_model.get_submodule(quantizer.name.rpartition(".")[0])
            # A kernel is a matrix in the graph: one row an output channel.
            expected = quantizer.codes(layer.weight.detach()).flatten(1).numpy()
            node = dequantize[quantizer.name]
            codes = node.inputs[0].const_value.numpy()
            axis = node.attributes["axis"].as_int()
            assert codes.dtype == np.int8
            assert quantizer.grid.qmin <= codes.min() < codes.max() == quantizer.grid.qmax
            np.testing.assert_array_equal(codes if axis == 0 else codes.T, expected)


def test_biases_are_those_of_torch_in_floating_point(exported: Exported) -> None:
    initializers = exported.graph.graph.initializers
    dequantized = [node for node in exported.graph.graph if node.op_type == "DequantizeLinear"]
    assert ir.DataType.INT32 not in {node.inputs[0].dtype for node in dequantized}
    layers = {
        name: layer
        for name, layer in exported.torch_model.named_modules()
        # The attention's scale is folded into the queries' part of qkv, by a power of two.
        if getattr(layer, "bias", None) is not None and not name.endswith("qkv")
    }
    assert layers
    for name, layer in layers.items():
        stored = initializers[f"{name}.bias"].const_value.numpy()
        expected = layer.bias.detach().numpy()
        np.testing.assert_array_equal(stored.reshape(-1), expected, err_msg=name)


def test_the_graph_is_valid_opset_20_of_onnx_operators_only(exported: Exported) -> None:
    proto = ir.to_proto(exported.graph)
    onnx.checker.check_model(proto, full_check=True)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 20)]
    assert {node.domain for node in proto.graph.node} == {""}


def test_every_product_takes_dequantized_tensors_directly(exported: Exported) -> None:
    products = [node for node in exported.graph.graph if node.op_type in {"Conv", "Gemm", "MatMul"}]
    assert len(products) == len(list_products(exported.torch_model))
    for node in products:
        producers = [value.producer().op_type for value in node.inputs[:2]]
        assert producers == ["DequantizeLinear"] * 2, node.name


def test_every_weight_scale_has_an_explicit_axis_and_every_activation_none(
    exported: Exported,
) -> None:
    for node in exported.graph.graph:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            per_channel = node.inputs[1].const_value.shape.numpy() != ()
            assert ("axis" in node.attributes) == per_channel == ("weight_quantizer" in node.name)


def test_no_floating_point_copy_of_a_quantized_weight_is_left(exported: Exported) -> None:
    matrices = {
        name
        for name, value in exported.graph.graph.initializers.items()
        if value.dtype == ir.DataType.FLOAT and len(value.shape) >= 2
    }
    added = {
        value.name
        for node in exported.graph.graph
        if node.op_type == "Add"
        for value in node.inputs
        if value.name in matrices
    }
    # Position embeddings, position biases and masks; and the class token, put in front.
    assert matrices - added <= {"cls_token"}
    assert added


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_teacher_equals_timm(exported_teacher: Exported, batch: int) -> None:
    (logits,) = run_ort(exported_teacher.graph, {"images": images(batch).numpy()})
    # Single precision, another order of summation.
    np.testing.assert_allclose(
        logits, torch_logits(exported_teacher.original, batch), rtol=0, atol=1e-5
    )


def test_onnx_runtime_makes_every_matrix_product_an_integer_product(
    exported: Exported, tmp_path: Path
) -> None:
    optimized = tmp_path / "optimized.onnx"
    run_ort(exported.graph, {"images": images(1).numpy()}, optimized_path=optimized)
    counts = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    # All but the head.
    expected = len(list_products(exported.torch_model)) - 1
    assert counts["MatMulIntegerToFloat"] + counts["QLinearMatMul"] == expected
    assert counts["QGemm"] == 1  # the head
    assert not {"MatMul", "Gemm", "Conv", "FusedMatMul", "MatMulNBits"} & set(counts)
    assert counts["DequantizeLinear"] == 0
