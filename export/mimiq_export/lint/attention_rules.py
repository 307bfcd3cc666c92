"""Rules about the two products of an attention and the Softmax between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimiq_export.lint.finding import Severity
from mimiq_export.lint.linted_graph import LAYOUT, kind
from mimiq_export.lint.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from mimiq_export.lint.linted_graph import Attention, LintedGraph
    from mimiq_export.lint.rule import Fault

__all__ = ["ATTENTION_IN_PART", "ATTENTION_SHAPE", "SCALE_BEHIND_SCORES"]

HEAD_SIZES = frozenset({16, 32, 64})
LONGEST = 512


def _shape(graph: LintedGraph) -> Iterator[Fault]:
    for attention in graph.attentions:
        if all(_quantized(graph, attention)):
            scores = attention.scores
            head = graph.size(scores.inputs[0], -1)
            keys = graph.size(scores.outputs[0], -1) or graph.size(scores.inputs[1], -1)
            if head is not None and head not in HEAD_SIZES:
                yield scores, f"it has {head} channels a head"
            elif keys is not None and keys > LONGEST:
                yield scores, f"it has {keys} tokens"


def _in_part(graph: LintedGraph) -> Iterator[Fault]:
    for attention in graph.attentions:
        quantized = _quantized(graph, attention)
        if any(quantized) and not all(quantized):
            names = ("queries", "keys", "probabilities", "values")
            pairs = zip(names, quantized, strict=True)
            missing = [name for name, is_there in pairs if not is_there]
            yield attention.softmax, f"its {' and '.join(missing)} are not quantized, the rest is"


def _quantized(graph: LintedGraph, attention: Attention) -> list[bool]:
    operands = [*attention.scores.inputs[:2], *attention.weighted.inputs[:2]]
    return [graph.dequantizer_across(value, LAYOUT) is not None for value in operands]


def _scale_behind(graph: LintedGraph) -> Iterator[Fault]:
    for attention in graph.attentions:
        for node in graph.users(attention.scores.outputs[0]):
            scales = kind(node) in {"Div", "Mul"} and _by_a_number(graph, node)
            if scales and any(_quantized(graph, attention)):
                yield node, f"it scales the product {graph.name_of(attention.scores)}"


def _by_a_number(graph: LintedGraph, node: ir.Node) -> bool:
    constants = [graph.constant(value) for value in node.inputs]
    return any(constant is not None and constant.size == 1 for constant in constants)


ATTENTION_SHAPE = Rule(
    name="attention-shape",
    severity=Severity.WARNING,
    demands="Integer attention has 16, 32 or 64 channels a head and at most 512 tokens.",
    remedy="Leave the attention in floating point (--scope linear).",
    source="TensorRT developer guide, fused INT8 attention, as quoted in NVIDIA/TensorRT #2981",
    check=_shape,
)

ATTENTION_IN_PART = Rule(
    name="attention-in-part",
    severity=Severity.WARNING,
    demands="Queries, keys, probabilities and values are all quantized, or none.",
    remedy="Quantize all four, or none (--scope linear).",
    source="TensorRT developer guide, fused INT8 attention, as quoted in NVIDIA/TensorRT #2981",
    check=_in_part,
)

SCALE_BEHIND_SCORES = Rule(
    name="scale-behind-scores",
    severity=Severity.WARNING,
    demands="The scale of a quantized attention is applied to queries or keys, not to their "
    "product.",
    remedy="Multiply the queries by it, in front of their quantizer.",
    source="TensorRT documentation, fused attention; NVIDIA Model-Optimizer, fp8_exporter",
    check=_scale_behind,
)
