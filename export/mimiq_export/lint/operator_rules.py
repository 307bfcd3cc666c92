"""Rules about operators and operator sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mimiq_export.lint.finding import Severity
from mimiq_export.lint.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mimiq_export.lint.linted_graph import LintedGraph, QuantizerNode
    from mimiq_export.lint.rule import Fault

__all__ = [
    "BLOCK_AXIS",
    "BLOCK_TYPE",
    "CONVOLUTION_TYPE",
    "INT4_ACTIVATION",
    "INT4_BLOCK_SIZE",
    "INT4_ODD",
    "OPERATOR_UNKNOWN",
    "OPSET_TOO_OLD",
]

INTEGER_OPERATORS = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QGemm", "QLinearAdd"}
    | {"QLinearConv", "QLinearMatMul", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax"}
    | {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "QAttention"}
)
"""Quantized arithmetic that is not written as Q/DQ; some are ONNX Runtime's own."""

_INT4 = frozenset({ir.DataType.INT4, ir.DataType.UINT4})
_BLOCKED = _INT4 | {ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1}
_BLOCK_SIZES = frozenset({64, 128})


def _unknown(graph: LintedGraph) -> Iterator[Fault]:
    for node in graph.nodes:
        foreign_pair = node.op_type in {"DequantizeLinear", "QuantizeLinear"} and node.domain
        if node.op_type in INTEGER_OPERATORS:
            yield node, f"there is no layer for {node.op_type}"
        elif foreign_pair and node.domain != "ai.onnx":
            yield node, f"its domain is {node.domain}"


def _opset(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        needed, why = _needed_opset(found)
        if graph.opset < needed and found.node.domain != "com.microsoft":
            yield found.node, f"{why} need opset {needed}, and this is {graph.opset}"


def _needed_opset(found: QuantizerNode) -> tuple[int, str]:
    if found.codes == ir.DataType.FLOAT4E2M1:
        return 23, "FP4 codes"
    if found.codes in _INT4:
        return 21, "4-bit codes"
    if found.block_size:
        return 21, "scales of blocks"
    if found.codes == ir.DataType.FLOAT8E4M3FN:
        return 19, "FP8 codes"
    if found.scale is not None and found.scale.dtype == np.float16:
        return 19, "half-precision scales"
    return (13, "several scales") if found.per_channel else (10, "quantizers")


def _block_type(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        if found.block_size and found.codes not in _BLOCKED:
            kind = "unknown" if found.codes is None else found.codes.name.lower()
            yield found.node, f"it has blocks of {found.block_size} and {kind} codes"


def _block_axis(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        rank = graph.rank(found.data)
        if found.block_size and rank:
            axis = 1 if found.axis is None else found.axis
            if axis % rank < rank - 2:
                yield found.node, f"its blocks lie along axis {axis} of {rank}"


def _block_size(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        if found.codes in _INT4 and found.block_size and found.block_size not in _BLOCK_SIZES:
            yield found.node, f"its blocks have {found.block_size} weights"


def _int4_activation(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        if found.codes in _INT4 and not graph.computes_from_weight(found.data):
            yield found.node, "it quantizes an activation to 4 bits"


def _odd(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        last = graph.size(found.data, -1)
        if found.codes in _INT4 and last is not None and last % 2:
            yield found.node, f"the last axis of its weight has {last} elements"


def _convolution(graph: LintedGraph) -> Iterator[Fault]:
    # uint8 has a rule of its own.
    taken = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.FLOAT8E4M3FN, None}
    for product in graph.products:
        if product.op_type in {"Conv", "ConvTranspose"}:
            for operand in product.inputs[:2]:
                found = graph.dequantizer(operand)
                if found is not None and found.codes not in taken and found.codes is not None:
                    yield product, f"it has {found.codes.name.lower()} codes"


OPERATOR_UNKNOWN = Rule(
    name="operator-unknown",
    severity=Severity.ERROR,
    demands="Quantized arithmetic is written as QuantizeLinear and DequantizeLinear of ONNX.",
    remedy="Export in QDQ format (quant_format=QuantFormat.QDQ), statically quantized.",
    source="onnx-tensorrt, list of operators",
    check=_unknown,
)

OPSET_TOO_OLD = Rule(
    name="opset-too-old",
    severity=Severity.ERROR,
    demands="The opset knows the quantizers: 13 for several scales, 19 for half-precision scales "
    "and FP8, 21 for 4 bits and blocks, 23 for FP4.",
    remedy="Export at the opset that is named.",
    source="ONNX, history of QuantizeLinear; NVIDIA Model-Optimizer",
    check=_opset,
)

BLOCK_TYPE = Rule(
    name="block-type",
    severity=Severity.ERROR,
    demands="Scales of blocks go with INT4, FP8 and FP4 codes only.",
    remedy="Use one scale a channel for int8.",
    source="TensorRT API, IQuantizeLayer and IDequantizeLayer",
    check=_block_type,
)

BLOCK_AXIS = Rule(
    name="block-axis",
    severity=Severity.ERROR,
    demands="Blocks lie along the last axis or the one before it.",
    remedy="Transpose the weight before it is quantized.",
    source="TensorRT API, IQuantizeLayer and IDequantizeLayer",
    check=_block_axis,
)

INT4_BLOCK_SIZE = Rule(
    name="int4-block-size",
    severity=Severity.WARNING,
    demands="Blocks of 4-bit weights have 64 or 128 elements.",
    remedy="Use blocks of 128.",
    source="Third-party digest of NVIDIA's page on quantized types; to be checked on the device",
    check=_block_size,
)

INT4_ACTIVATION = Rule(
    name="int4-activation",
    severity=Severity.ERROR,
    demands="4-bit codes are for weights only.",
    remedy="Store activations of 4 bits as int8 codes behind a Clip.",
    source="TensorRT documentation, working with quantized types",
    check=_int4_activation,
)

INT4_ODD = Rule(
    name="int4-odd",
    severity=Severity.ERROR,
    demands="The last axis of a 4-bit weight is even: two codes share a byte.",
    remedy="Pad the weight, or store it as int8.",
    source="onnx-tensorrt, importer of DequantizeLinear",
    check=_odd,
)

CONVOLUTION_TYPE = Rule(
    name="convolution-type",
    severity=Severity.ERROR,
    demands="Operands of convolutions are INT8 or FP8.",
    remedy="Store the weights of convolutions as int8.",
    source="NVIDIA Model-Optimizer, torch_onnx example, overrides for Conv2d",
    check=_convolution,
)
