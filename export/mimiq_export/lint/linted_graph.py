"""A graph as the rules look at it: quantizers, products, attention, constants, shapes.

Made for any ONNX graph, so that nothing is taken for granted: names, shapes and types may be
missing, inputs may be left out, constants may be nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

__all__ = ["DOMAINS", "LAYOUT", "PRODUCTS", "Attention", "LintedGraph", "QuantizerNode", "kind"]

DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
"""Where QuantizeLinear and DequantizeLinear are found; the last is ONNX Runtime's own."""

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that engines run in integers between quantizers."""

LAYOUT = frozenset(
    {"Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split"}
    | {"Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that move values and change none."""

_UNCHANGED = frozenset({"Cast", "Identity"})
_AROUND_SOFTMAX = frozenset(
    {"Add", "Cast", "Clip", "DequantizeLinear", "Div", "Dropout", "Identity", "Mul"}
    | {"QuantizeLinear", "Reshape", "Where"}
)
_CLOSE_TO_QUANTIZERS = _UNCHANGED | {"Clip", "DequantizeLinear", "QuantizeLinear"}
_FARTHEST = 12
_LONGEST_LAYER = 500


def kind(node: ir.Node) -> str:
    """The operator of a node; with its domain, where that is neither ONNX nor ONNX Runtime's.

    An operator of another domain may share the name of one of ONNX, and nothing else.
    """
    return node.op_type if node.domain in DOMAINS else f"{node.domain}::{node.op_type}"


@dataclass(frozen=True)
class QuantizerNode:
    """A QuantizeLinear or DequantizeLinear.

    Attributes:
        node: The node.
        data: What it takes.
        scale: Its scale; None where that is not constant.
        zero_point: Its zero point; None where that is missing or not constant.
        codes: Type of the codes; None where it is not known.
        is_weight: Whether it takes a constant.
        axis: The attribute, or None.
        block_size: The attribute, 0 without.
    """

    node: ir.Node
    data: ir.Value
    scale: NDArray[np.generic] | None
    zero_point: NDArray[np.generic] | None
    codes: ir.DataType | None
    is_weight: bool
    axis: int | None
    block_size: int

    @property
    def quantizes(self) -> bool:
        """Whether it is the QuantizeLinear of the two."""
        return kind(self.node) == "QuantizeLinear"

    @property
    def scale_value(self) -> ir.Value | None:
        """The scale as a value of the graph."""
        return self.node.inputs[1] if len(self.node.inputs) > 1 else None

    @property
    def zero_value(self) -> ir.Value | None:
        """The zero point as a value of the graph."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    @property
    def per_channel(self) -> bool:
        """Whether there is one scale for each slice of an axis."""
        return self.scale is not None and self.scale.ndim == 1 and self.scale.size > 1


@dataclass(frozen=True)
class Attention:
    """The two products around a Softmax.

    Attributes:
        scores: Queries times keys.
        softmax: The Softmax.
        weighted: Probabilities times values.
    """

    scores: ir.Node
    softmax: ir.Node
    weighted: ir.Node


class LintedGraph:
    """A model with the questions that rules ask.

    Args:
        model: A model whose functions are inlined and, if possible, whose shapes are inferred.
            Nodes of sub-graphs are looked at, too.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        # A node without outputs has no part in the answer.
        self.nodes: list[ir.Node] = [node for node in model.graph.all_nodes() if node.outputs]

    @property
    def opset(self) -> int:
        """Version of the ONNX operators; 0 where the file names none."""
        imports = self.model.opset_imports
        return imports.get("", imports.get("ai.onnx", 0))

    @cached_property
    def quantizers(self) -> list[QuantizerNode]:
        """Every QuantizeLinear and DequantizeLinear that has an input."""
        return [found for node in self.nodes if (found := self._quantizer(node)) is not None]

    @cached_property
    def products(self) -> list[ir.Node]:
        """Every product with two operands."""
        return [
            node
            for node in self.nodes
            if node.domain in DOMAINS
            and kind(node) in PRODUCTS
            and len(node.inputs) >= 2
            and node.inputs[0] is not None
            and node.inputs[1] is not None
        ]

    @cached_property
    def attentions(self) -> list[Attention]:
        """Every Softmax between two products of activations."""
        found = []
        for softmax in self.nodes:
            if kind(softmax) == "Softmax" and softmax.inputs and softmax.outputs:
                scores = self._product_before(softmax.inputs[0])
                weighted = self._product_behind(softmax.outputs[0])
                if scores is not None and weighted is not None:
                    found.append(Attention(scores, softmax, weighted))
        return found

    def name_of(self, node: ir.Node) -> str:
        """The node's name, or its operator and first output."""
        output = node.outputs[0].name if node.outputs else ""
        return node.name or f"{node.op_type} that makes {output or 'nothing'}"

    def constant(self, value: ir.Value | None) -> NDArray[np.generic] | None:
        """Elements of a constant, also of a Constant node and behind Identity or Cast.

        A Cast is carried out: what an engine gets is what stands behind it.
        """
        casts: list[ir.DataType] = []
        for _ in range(_FARTHEST):
            if value is None:
                return None
            node = value.producer()
            elements = _constant_node(node)
            if value.const_value is not None:
                elements = np.asarray(value.const_value.numpy())
            if elements is not None:
                return _cast(elements, reversed(casts)) if _is_numeric(elements) else None
            if node is None or kind(node) not in _UNCHANGED or not node.inputs:
                return None
            if kind(node) == "Cast":
                casts.append(ir.DataType(node.attributes.get_int("to", ir.DataType.FLOAT)))
            value = node.inputs[0]
        return None

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether a value is known without an image; no elements are read."""
        for _ in range(_FARTHEST):
            if value is None:
                return False
            if value.const_value is not None:
                return True
            node = value.producer()
            if node is not None and kind(node) == "Constant":
                return True
            if node is None or kind(node) not in _UNCHANGED or not node.inputs:
                return False
            value = node.inputs[0]
        return False

    def dequantizer(self, value: ir.Value | None) -> QuantizerNode | None:
        """The DequantizeLinear that directly makes a value."""
        node = None if value is None else value.producer()
        found = None if node is None else self._quantizer(node)
        return None if found is None or found.quantizes else found

    def dequantizer_across(
        self, value: ir.Value | None, moved_by: frozenset[str]
    ) -> tuple[QuantizerNode, list[ir.Node]] | None:
        """The DequantizeLinear behind a value, and the nodes of the given types between them."""
        between: list[ir.Node] = []
        while value is not None and len(between) < _FARTHEST:
            found = self.dequantizer(value)
            if found is not None:
                return found, between
            node = value.producer()
            if node is None or kind(node) not in moved_by or not node.inputs:
                return None
            between.append(node)
            value = node.inputs[0]
        return None

    def computes_from_weight(self, value: ir.Value | None) -> bool:
        """Whether a value is a constant, perhaps dequantized, quantized or moved."""
        for _ in range(_FARTHEST):
            if value is None or self.is_constant(value):
                return value is not None
            node = value.producer()
            passing = LAYOUT | _UNCHANGED | {"DequantizeLinear", "QuantizeLinear"}
            if node is None or kind(node) not in passing or not node.inputs:
                return False
            value = node.inputs[0]
        return False

    def is_residual_sum(self, node: ir.Node) -> bool:
        """Whether a node adds a stream to what was computed from that same stream."""
        if kind(node) not in {"Add", "Sum"} or len(node.inputs) < 2:
            return False
        operands = [_unquantized(value) for value in node.inputs if value is not None]
        return any(
            stream is not other and stream is not None and self._is_made_from(other, stream)
            for stream in operands
            for other in operands
        )

    def _is_made_from(self, value: ir.Value | None, stream: ir.Value) -> bool:
        """Whether a stream is found behind a value, as far as a layer may be long."""
        waiting, seen = [value], {value}
        while waiting and len(seen) < _LONGEST_LAYER:
            each = waiting.pop(0)
            producer = None if each is None else each.producer()
            for operand in producer.inputs if producer is not None else ():
                if operand is stream:
                    return True
                if operand not in seen:
                    seen.add(operand)
                    waiting.append(operand)
        return False

    def size(self, value: ir.Value | None, axis: int) -> int | None:
        """Size of an axis, where it is known."""
        shape = None if value is None else value.shape
        if shape is None or not -len(shape) <= axis < len(shape):
            return None
        size = shape[axis]
        return size if isinstance(size, int) else None

    def rank(self, value: ir.Value | None) -> int | None:
        """Number of axes, where it is known."""
        return None if value is None or value.shape is None else len(value.shape)

    def users(self, value: ir.Value) -> list[ir.Node]:
        """Nodes that take a value."""
        return [use.node for use in value.uses()]

    def _quantizer(self, node: ir.Node) -> QuantizerNode | None:
        known = kind(node) in {"DequantizeLinear", "QuantizeLinear"}
        if not known or len(node.inputs) < 2 or node.inputs[0] is None:
            return None
        data = node.inputs[0]
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        return QuantizerNode(
            node=node,
            data=data,
            scale=self.constant(node.inputs[1]),
            zero_point=self.constant(zero),
            codes=_code_type(node, data, zero),
            is_weight=self.is_constant(data),
            axis=node.attributes["axis"].as_int() if "axis" in node.attributes else None,
            block_size=node.attributes.get_int("block_size", 0),
        )

    def _product_before(self, value: ir.Value | None) -> ir.Node | None:
        for node in self._walk_back(value):
            if kind(node) == "MatMul" and len(node.inputs) == 2:
                weights = [self.computes_from_weight(operand) for operand in node.inputs]
                return None if any(weights) else node
        return None

    def _walk_back(self, value: ir.Value | None) -> Iterator[ir.Node]:
        """What makes a value, across what stands between a product and its Softmax."""
        waiting = [value]
        for _ in range(4 * _FARTHEST):
            node = waiting.pop(0) if waiting else None
            producer = None if node is None else node.producer()
            if producer is not None:
                yield producer
                if kind(producer) in _AROUND_SOFTMAX:
                    waiting.extend(producer.inputs)
            if not waiting:
                return

    def _product_behind(self, value: ir.Value) -> ir.Node | None:
        for _ in range(_FARTHEST):
            users = self.users(value)
            for user in users:
                if kind(user) == "MatMul":
                    return user
            onward = [user for user in users if kind(user) in _AROUND_SOFTMAX and user.outputs]
            if not onward:
                return None
            value = onward[0].outputs[0]
        return None


def _unquantized(value: ir.Value | None) -> ir.Value | None:
    """What a value was before quantizers, Clips and Casts."""
    for _ in range(_FARTHEST):
        node = None if value is None else value.producer()
        if node is None or kind(node) not in _CLOSE_TO_QUANTIZERS or not node.inputs:
            return value
        value = node.inputs[0]
    return value


def _constant_node(node: ir.Node | None) -> NDArray[np.generic] | None:
    if node is None or kind(node) != "Constant":
        return None
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.TENSOR:
            return np.asarray(attribute.as_tensor().numpy())
        return np.asarray(attribute.value)
    return None


def _is_numeric(array: NDArray[np.generic]) -> bool:
    """Not text. The types of numbers that numpy lacks are void to it."""
    return array.dtype.kind not in "OSU"


def _cast(array: NDArray[np.generic], types: Iterable[ir.DataType]) -> NDArray[np.generic]:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for dtype in types:
            array = array.astype(dtype.numpy())
    return array


def _code_type(node: ir.Node, data: ir.Value, zero: ir.Value | None) -> ir.DataType | None:
    if kind(node) == "DequantizeLinear":
        return data.dtype or (None if zero is None else zero.dtype)
    if zero is not None:
        return zero.dtype or node.outputs[0].dtype
    named = node.attributes.get_int("output_dtype", 0)
    if named not in set(ir.DataType):
        return ir.DataType.UNDEFINED
    # ONNX: without a zero point and a named type the codes are uint8.
    return ir.DataType(named) if named else ir.DataType.UINT8
