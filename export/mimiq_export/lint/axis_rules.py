"""Rules about the axis that the scales of a weight lie along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimiq_export.lint.finding import Severity
from mimiq_export.lint.linted_graph import kind
from mimiq_export.lint.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from mimiq_export.lint.linted_graph import LintedGraph
    from mimiq_export.lint.rule import Fault

__all__ = ["SCALE_AXIS", "SCALE_AXIS_IGNORED"]


def _scale_axis(graph: LintedGraph) -> Iterator[Fault]:
    for product in graph.products:
        yield from _faults_of(graph, product)


def _ignored(graph: LintedGraph) -> Iterator[Fault]:
    for product in graph.products:
        if all(graph.dequantizer(operand) for operand in product.inputs[:2]):
            yield from _faults_of(graph, product)


def _faults_of(graph: LintedGraph, product: ir.Node) -> Iterator[Fault]:
    for position, operand in enumerate(product.inputs[:2]):
        found, rank = graph.dequantizer(operand), graph.rank(operand)
        if found is not None and rank is not None and found.per_channel and not found.block_size:
            axis = 1 if found.axis is None else found.axis
            outputs = _output_axis(product, position, rank)
            if -rank <= axis < rank and axis % rank != outputs:
                of = f"the outputs of {graph.name_of(product)} along axis {outputs}"
                yield found.node, f"its scales lie along axis {axis}, and {of}"


def _output_axis(product: ir.Node, position: int, rank: int) -> int:
    """The axis of an operand, the first or the second, that is not summed over."""
    operator = kind(product)
    if operator in {"Conv", "ConvTranspose"}:
        return 0 if operator == "Conv" else 1
    attribute = ("transA", "transB")[position]
    turned = operator == "Gemm" and product.attributes.get_int(attribute, 0) == 1
    last = (position == 1) != turned
    return rank - 1 if last else rank - 2


_DEMANDS = "The scales of a weight lie along its output channels: "
_REMEDY = (
    "Quantize the weight along its outputs: the last axis for MatMul, the first for Conv and for "
    "Gemm with transB."
)

SCALE_AXIS = Rule(
    name="scale-axis",
    severity=Severity.WARNING,
    demands=_DEMANDS + "others cannot be taken out of the sum, and the product runs in floating "
    "point.",
    remedy=_REMEDY,
    source="TensorRT developer guide, per-channel quantization of weights",
    check=_scale_axis,
)

SCALE_AXIS_IGNORED = Rule(
    name="scale-axis-ignored",
    severity=Severity.ERROR,
    demands=_DEMANDS + "the integer product takes any scales for those of outputs, and gives "
    "other numbers than the file says.",
    remedy=_REMEDY,
    source="measured with ONNX Runtime 1.32",
    check=_ignored,
)
