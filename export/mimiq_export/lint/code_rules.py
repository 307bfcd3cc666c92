"""Rules about the integers that are stored, and their zero points."""

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
    "BIAS_IN_INT32",
    "CODES_WITHOUT_TYPE",
    "CODE_TYPE",
    "UINT8_CODES",
    "ZERO_POINT",
    "ZERO_POINT_NOT_CONSTANT",
    "ZERO_POINT_SHAPE",
]

_TAKEN = frozenset(
    {
        ir.DataType.INT8,
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.INT4,
        ir.DataType.FLOAT4E2M1,
    }
)


def _uint8(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        if found.codes == ir.DataType.UINT8 and not _has_no_named_type(found):
            yield found.node, "its codes are uint8"


def _without_type(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        if _has_no_named_type(found):
            yield found.node, "it has neither a zero point nor output_dtype"


def _has_no_named_type(found: QuantizerNode) -> bool:
    named = "output_dtype" in found.node.attributes
    return found.quantizes and found.zero_value is None and not named


def _bias(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        if found.codes == ir.DataType.INT32:
            yield found.node, "it dequantizes int32"


def _type(graph: LintedGraph) -> Iterator[Fault]:
    own_rules = {ir.DataType.UINT8, ir.DataType.INT32, None}
    for found in graph.quantizers:
        if found.codes not in _TAKEN | own_rules:
            codes = ir.DataType.UNDEFINED if found.codes is None else found.codes
            yield found.node, f"its codes are {codes.name.lower()}"


def _zero_point(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        zero = found.zero_point
        if zero is not None and np.any(zero.astype(np.float32)):
            wrong = zero[zero.astype(np.float32) != 0].flat[0]
            yield found.node, f"its zero point is {wrong}"


def _zero_point_shape(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        zero, scale = found.zero_point, found.scale
        if zero is not None and scale is not None and zero.size != scale.size:
            yield found.node, f"it has {zero.size} zero points and {scale.size} scales"


def _not_constant(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        if found.zero_value is not None and found.zero_point is None:
            yield found.node, "its zero point is computed while the model runs"


_PARSER = "onnx-tensorrt, importer of QuantizeLinear and DequantizeLinear"
_LAYER = "TensorRT API, IQuantizeLayer and IDequantizeLayer"

UINT8_CODES = Rule(
    name="uint8-codes",
    severity=Severity.ERROR,
    demands="No quantizer has uint8 codes.",
    remedy="Quantize to int8 with zero point 0: symmetric, or moved by an addition.",
    source=_PARSER,
    check=_uint8,
)

CODES_WITHOUT_TYPE = Rule(
    name="codes-without-type",
    severity=Severity.ERROR,
    demands="A QuantizeLinear names the type of its codes: ONNX means uint8 without, "
    "TensorRT int8.",
    remedy="Add a zero point of int8 zeros.",
    source=_PARSER,
    check=_without_type,
)

CODE_TYPE = Rule(
    name="code-type",
    severity=Severity.ERROR,
    demands="Codes are INT8, FP8 (E4M3), INT4 or FP4.",
    remedy="Quantize to int8.",
    source=_LAYER,
    check=_type,
)

BIAS_IN_INT32 = Rule(
    name="bias-in-int32",
    severity=Severity.ERROR,
    demands="No bias is dequantized from int32.",
    remedy="Leave biases in floating point (QuantizeBias=False in ONNX Runtime's quantizer).",
    source=_LAYER,
    check=_bias,
)

ZERO_POINT = Rule(
    name="zero-point",
    severity=Severity.ERROR,
    demands="Every zero point is 0.",
    remedy="Quantize symmetrically, or move the values by an addition that the next bias takes "
    "out.",
    source=_PARSER,
    check=_zero_point,
)

ZERO_POINT_SHAPE = Rule(
    name="zero-point-shape",
    severity=Severity.ERROR,
    demands="There are as many zero points as scales.",
    remedy="Write one zero point for each scale.",
    source=_PARSER,
    check=_zero_point_shape,
)

ZERO_POINT_NOT_CONSTANT = Rule(
    name="zero-point-not-constant",
    severity=Severity.ERROR,
    demands="A zero point is a constant, perhaps behind a Cast.",
    remedy="Make it an initializer of zeros.",
    source=_LAYER,
    check=_not_constant,
)
