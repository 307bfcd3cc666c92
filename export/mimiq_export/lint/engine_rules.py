"""Rules of ONNX Runtime on a CPU and on CUDA, and of OpenVINO."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mimiq_export.lint.finding import Severity
from mimiq_export.lint.linted_graph import LAYOUT, kind
from mimiq_export.lint.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mimiq_export.lint.linted_graph import LintedGraph, QuantizerNode
    from mimiq_export.lint.rule import Fault

__all__ = [
    "BIAS_IN_GEMM",
    "CONVOLUTION_OUTPUT",
    "DYNAMIC_PRODUCT",
    "HALF_SCALES",
    "INT8_ADD",
    "INT8_AT_OPSET_21",
    "NO_CUDA_KERNEL",
    "OUTPUT_TYPE_TWICE",
    "QUANTIZED_SOFTMAX",
    "SATURATING_PAIR",
    "UNFUSED_PAIRS",
]

_MEASURED = "measured with ONNX Runtime 1.32"
_WITHOUT_KERNEL = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "QLinearAdd", "QLinearConv", "QLinearMatMul"}
    | {"QLinearMul", "QLinearSigmoid", "QLinearSoftmax"}
)
_FLOAT_IN_OPENVINO = frozenset({"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger"})


def _opset_21(graph: LintedGraph) -> Iterator[Fault]:
    if graph.opset < 21:
        return
    for found in graph.quantizers:
        int8 = found.zero_point is not None and found.zero_point.dtype == np.int8
        if int8 and not found.quantizes and not found.is_weight:
            moved = [user for user in graph.users(found.node.outputs[0]) if kind(user) in LAYOUT]
            if moved:
                name = graph.name_of(moved[0])
                yield found.node, f"its int8 zero point meets {name} at opset {graph.opset}"


def _type_twice(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        named = found.node.attributes.get_int("output_dtype", 0)
        if found.quantizes and named == ir.DataType.INT8 and found.zero_value is not None:
            yield found.node, "it has output_dtype and a zero point"


def _gemm_bias(graph: LintedGraph) -> Iterator[Fault]:
    for product in graph.products:
        if kind(product) == "Gemm" and len(product.inputs) == 3 and product.inputs[2]:
            operands = [graph.dequantizer(operand) for operand in product.inputs[:2]]
            if all(operands) and graph.dequantizer(product.inputs[2]) is None:
                yield product, "its operands are quantized and its bias is not"


def _half_scales(graph: LintedGraph) -> Iterator[Fault]:
    halves = (found for found in graph.quantizers if _is_half(found.scale))
    for found in halves:
        yield found.node, "it and perhaps others have scales in half precision"
        return


def _is_half(scale: np.ndarray | None) -> bool:
    return scale is not None and scale.dtype == np.float16


def _int8_add(graph: LintedGraph) -> Iterator[Fault]:
    for node in graph.nodes:
        if kind(node) == "Add" and len(node.inputs) == 2:
            operands = [graph.dequantizer(value) for value in node.inputs]
            int8 = [found is not None and found.codes == ir.DataType.INT8 for found in operands]
            quantized = any(kind(user) == "QuantizeLinear" for user in _users(graph, node))
            if all(int8) and quantized:
                yield node, "it adds int8 and is quantized to int8"


def _convolution(graph: LintedGraph) -> Iterator[Fault]:
    for product in graph.products:
        if kind(product) == "Conv" and all(
            graph.dequantizer(operand) for operand in product.inputs[:2]
        ):
            users = _users(graph, product)
            if not any(kind(user) == "QuantizeLinear" for user in users):
                yield product, "its operands are quantized and its output is not"


def _softmax(graph: LintedGraph) -> Iterator[Fault]:
    for node in graph.nodes:
        if kind(node) == "Softmax" and graph.dequantizer(node.inputs[0]) is not None:
            users = [kind(user) for user in _users(graph, node)]
            if "QuantizeLinear" in users:
                yield node, "its input and its output are quantized"


def _saturating(graph: LintedGraph) -> Iterator[Fault]:
    for product in graph.products:
        left, right = (graph.dequantizer_across(value, LAYOUT) for value in product.inputs[:2])
        if left is not None and right is not None:
            pair = (left[0].codes, right[0].codes)
            if pair == (ir.DataType.UINT8, ir.DataType.INT8) and _uses_all_bits(graph, right[0]):
                yield product, "it multiplies uint8 by int8 with all 8 bits"
                continue


def _uses_all_bits(graph: LintedGraph, weight: QuantizerNode) -> bool:
    """Codes within -64..64 cannot saturate (reduce_range)."""
    codes = graph.constant(weight.data)
    return codes is None or int(np.abs(codes.astype(np.int16)).max(initial=0)) > 64


def _no_cuda_kernel(graph: LintedGraph) -> Iterator[Fault]:
    for node in graph.nodes:
        if kind(node) in _WITHOUT_KERNEL:
            yield node, f"CUDA has no kernel for {kind(node)}"


def _unfused(graph: LintedGraph) -> Iterator[Fault]:
    pairs = [found for found in graph.quantizers if found.quantizes]
    if pairs:
        yield pairs[0].node, f"this and {len(pairs) - 1} others run as kernels of their own"


def _dynamic(graph: LintedGraph) -> Iterator[Fault]:
    for node in graph.nodes:
        if kind(node) in _FLOAT_IN_OPENVINO:
            yield node, f"{kind(node)} is computed in floating point"


def _users(graph: LintedGraph, node: ir.Node) -> list[ir.Node]:
    return graph.users(node.outputs[0])


INT8_AT_OPSET_21 = Rule(
    name="int8-at-opset-21",
    severity=Severity.ERROR,
    demands="From opset 21 on, no DequantizeLinear with an int8 zero point feeds an operator that "
    "moves values: the session is not created (uint8 is assumed on the way).",
    remedy="Export at opset 20, or leave zero points out and write output_dtype.",
    source=f"{_MEASURED}; ONNX Runtime #28144",
    check=_opset_21,
)

OUTPUT_TYPE_TWICE = Rule(
    name="output-type-twice",
    severity=Severity.ERROR,
    demands="A QuantizeLinear to int8 has output_dtype or a zero point, not both.",
    remedy="Leave output_dtype out.",
    source=f"{_MEASURED}; ONNX Runtime #25526",
    check=_type_twice,
)

BIAS_IN_GEMM = Rule(
    name="bias-in-gemm",
    severity=Severity.WARNING,
    demands="A quantized Gemm has no bias or one in int32: with another it runs in floating point.",
    remedy="Write the bias as an Add behind the Gemm.",
    source=_MEASURED,
    check=_gemm_bias,
)

HALF_SCALES = Rule(
    name="half-scales",
    severity=Severity.WARNING,
    demands="Scales are in single precision: with others nothing is fused, and a block of a ViT "
    "takes more than twice the time of full precision.",
    remedy="Export for ort-cpu.",
    source=_MEASURED,
    check=_half_scales,
)

INT8_ADD = Rule(
    name="int8-add",
    severity=Severity.WARNING,
    demands="An Add between quantizers has uint8 codes: with int8 it runs in floating point.",
    remedy="Take the quantizers of the residual stream away.",
    source=_MEASURED,
    check=_int8_add,
)

CONVOLUTION_OUTPUT = Rule(
    name="convolution-output",
    severity=Severity.WARNING,
    demands="A quantized convolution has a quantized output: else it runs in floating point.",
    remedy="Write a convolution of separate patches as Reshape and MatMul, or leave it in "
    "floating point.",
    source=_MEASURED,
    check=_convolution,
)

QUANTIZED_SOFTMAX = Rule(
    name="quantized-softmax",
    severity=Severity.WARNING,
    demands="Softmax is not between quantizers: QLinearSoftmax is slower than Softmax.",
    remedy="Take the quantizer in front of the Softmax away.",
    source=_MEASURED,
    check=_softmax,
)

SATURATING_PAIR = Rule(
    name="saturating-pair",
    severity=Severity.WARNING,
    demands="Activations are int8 where weights are int8 with all 8 bits: CPUs with AVX2 or "
    "AVX-512 but without VNNI add products of uint8 and int8 in 16 bits, which saturate.",
    remedy="Use int8 activations, or weights of 7 bits (reduce_range).",
    source="ONNX Runtime documentation, quantization on x86",
    check=_saturating,
)

NO_CUDA_KERNEL = Rule(
    name="no-cuda-kernel",
    severity=Severity.WARNING,
    demands="Quantized arithmetic is in QDQ form: integer operators run on the CPU, with copies.",
    remedy="Export in QDQ format, or run the model with TensorRT.",
    source="ONNX Runtime #24807 and #15491",
    check=_no_cuda_kernel,
)

UNFUSED_PAIRS = Rule(
    name="unfused-pairs",
    severity=Severity.WARNING,
    demands="Few quantizers stand on activations: CUDA has no integer products, and each "
    "quantizer is one more kernel.",
    remedy="Expect parity, not speed; for integer arithmetic on a GPU use the target trt.",
    source="ONNX Runtime #12229 and #7745",
    check=_unfused,
)

DYNAMIC_PRODUCT = Rule(
    name="dynamic-product",
    severity=Severity.WARNING,
    demands="Products are quantized statically, as QDQ or QLinear operators: integer products "
    "with scales that are found while running are computed in floating point.",
    remedy="Quantize statically.",
    source="measured with OpenVINO 2026.4, execution graph of the CPU plugin",
    check=_dynamic,
)
