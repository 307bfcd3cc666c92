"""Rules about operators and operator sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from mimiq_export.lint.finding import Severity
from mimiq_export.lint.linted_graph import LAYOUT, kind
from mimiq_export.lint.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mimiq_export.lint.linted_graph import LintedGraph, QuantizerNode
    from mimiq_export.lint.rule import Fault

__all__ = [
    "BLOCK_AXIS",
    "BLOCK_TYPE",
    "CODES_AT_INTERFACE",
    "CONVOLUTION_TYPE",
    "INT4_ACTIVATION",
    "INT4_BESIDE_CODES",
    "INT4_BLOCK_SIZE",
    "INT4_ELSEWHERE",
    "INT4_ODD",
    "OPERATOR_NOT_IMPORTED",
    "OPERATOR_UNKNOWN",
    "OPSET_TOO_OLD",
    "UINT8_INPUT",
]

INTEGER_OPERATORS = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QGemm", "QLinearAdd"}
    | {"QLinearConv", "QLinearMatMul", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax"}
    | {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "QAttention"}
)
"""Quantized arithmetic that is not written as Q/DQ; some are ONNX Runtime's own."""

_BEYOND_ONNX = frozenset({"ImageScaler", "ParametricSoftplus", "ScaledTanh"})
"""Operators that ONNX does not define any more, and TensorRT's parser takes."""

_REFUSED = frozenset(
    {"AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr"}
    | {"BitwiseXor", "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "DFT", "Det"}
    | {"ImageDecoder", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial"}
    | {"NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement"}
    | {"RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"}
    | {"SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss"}
    | {"SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"}
    | {"Unique"}
)
"""Operators of ONNX that the parser's list for TensorRT 10.15 says no to."""

_OTHER_OPERANDS = frozenset({"Attention", "RotaryEmbedding"})
"""Operators of ONNX Runtime that have the name of one of ONNX, and other operands."""

_INT4 = frozenset({ir.DataType.INT4, ir.DataType.UINT4})
_BLOCKED = _INT4 | {ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1}
_CAST_FROM_UINT8 = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
_BLOCK_SIZES = frozenset({64, 128})


def _unknown(graph: LintedGraph) -> Iterator[Fault]:
    for node in graph.nodes:
        if kind(node) in INTEGER_OPERATORS:
            yield node, f"there is no layer for {kind(node)}"


def _not_imported(graph: LintedGraph) -> Iterator[Fault]:
    for node in graph.nodes:
        # The parser goes by the name alone; of a name it does not know it asks for a plugin.
        name, plugin = node.op_type, node.domain.startswith("trt")
        known = name in _BEYOND_ONNX or (name not in _REFUSED and onnx.defs.has(name))
        other = node.domain == "com.microsoft" and name in _OTHER_OPERANDS
        named_by_tensorrt = plugin or name.startswith("TRT_") or name.endswith("_TRT")
        if (other or not known) and not named_by_tensorrt and name not in INTEGER_OPERATORS:
            domain = f" of the domain {node.domain}" if node.domain else ""
            yield node, f"TensorRT does not know {name}{domain}"


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


def _four_bits_elsewhere(graph: LintedGraph) -> Iterator[Fault]:
    for node in graph.nodes:
        for value in node.inputs[:1]:
            four = value is not None and value.dtype in _INT4 | {ir.DataType.FLOAT4E2M1}
            if value is not None and four and kind(node) not in LAYOUT | {"DequantizeLinear"}:
                yield node, f"it takes {_type_name(value)} codes"


def _four_bits_beside_codes(graph: LintedGraph) -> Iterator[Fault]:
    for product in graph.products:
        left, right = (graph.dequantizer_across(value, LAYOUT) for value in product.inputs[:2])
        if left is not None and right is not None:
            four = [found[0].codes in _INT4 for found in (left, right)]
            if any(four):
                yield product, f"its {'first' if four[0] else 'second'} operand has 4-bit codes"


def _type_name(value: ir.Value) -> str:
    return "unknown" if value.dtype is None else value.dtype.name.lower()


def _codes_at_interface(graph: LintedGraph) -> Iterator[Fault]:
    codes = _BLOCKED | {ir.DataType.INT8}
    for value in graph.model.graph.inputs:
        users = graph.users(value)
        if value.dtype in codes and users:
            yield users[0], f"the input {value.name} holds {_type_name(value)} codes"
    for value in graph.model.graph.outputs:
        producer = value.producer()
        if value.dtype in codes and producer is not None:
            yield producer, f"the output {value.name} holds {_type_name(value)} codes"


def _pixels(graph: LintedGraph) -> Iterator[Fault]:
    for value in graph.model.graph.inputs:
        for user in graph.users(value) if value.dtype == ir.DataType.UINT8 else ():
            floats = user.outputs and user.outputs[0].dtype in _CAST_FROM_UINT8
            if kind(user) != "Cast" or not floats:
                yield user, f"it takes the uint8 input {value.name}"


def _convolution(graph: LintedGraph) -> Iterator[Fault]:
    # uint8 has a rule of its own.
    taken = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.FLOAT8E4M3FN, None}
    for product in graph.products:
        if kind(product) in {"Conv", "ConvTranspose"}:
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

OPERATOR_NOT_IMPORTED = Rule(
    name="operator-not-imported",
    severity=Severity.ERROR,
    demands="TensorRT's parser knows every operator by its name, or a plugin of that name is "
    "loaded.",
    remedy="Export without the fusions of ONNX Runtime (they belong into the session), write the "
    "operator in those of ONNX, or give TensorRT a plugin.",
    source="onnx-tensorrt, list of operators for TensorRT 10.15, and ModelImporter",
    check=_not_imported,
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

INT4_ELSEWHERE = Rule(
    name="int4-elsewhere",
    severity=Severity.ERROR,
    demands="Codes of 4 bits go to DequantizeLinear and nowhere else, not even to a Cast.",
    remedy="Store the codes as int8: an export for trt does, and --packed-int4 is for ort-cpu and "
    "openvino.",
    source="onnx-tensorrt, list of operators for TensorRT 10.15",
    check=_four_bits_elsewhere,
)

INT4_BESIDE_CODES = Rule(
    name="int4-beside-codes",
    severity=Severity.WARNING,
    demands="A weight of 4 bits stands beside an activation in floating point: there are no "
    "integer products with it, and the activation's quantizer only costs precision.",
    remedy="Store the weight as int8, or take the quantizer of the activation away.",
    source="TensorRT documentation, working with quantized types (INT4 is for weights only)",
    check=_four_bits_beside_codes,
)

CODES_AT_INTERFACE = Rule(
    name="codes-at-interface",
    severity=Severity.WARNING,
    demands="Inputs and outputs of the graph are no codes of a quantizer: who calls it would need "
    "the scale, and TensorRT has quantized types between quantizers only.",
    remedy="Put the QuantizeLinear or DequantizeLinear of this tensor into the model.",
    source="onnx-tensorrt, list of operators for TensorRT 10.15, note on quantized types",
    check=_codes_at_interface,
)

UINT8_INPUT = Rule(
    name="uint8-input",
    severity=Severity.ERROR,
    demands="A uint8 input goes to a Cast to float or float16 and nowhere else.",
    remedy="Cast first, or normalise outside: export without --with-preprocessing.",
    source="TensorRT API, DataType kUINT8",
    check=_pixels,
)
