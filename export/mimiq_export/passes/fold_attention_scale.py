"""The attention's scale taken into the projection that makes the queries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mimiq_export.passes.graph_edits import constant_of, only_user, replace_constant

__all__ = ["FoldAttentionScalePass"]


class FoldAttentionScalePass(ir.passes.InPlacePass):
    """Scale the weights of the queries instead of the queries.

    1. Applies to ``Split(x W + b)``, one part of which goes through Reshapes and Transposes to a
       Mul by one constant number, where ``W`` is a DequantizeLinear with one scale a column. The
       graph is as the passes that split heads and quantize weights leave it.
    2. The scales of ``W`` and the elements of ``b`` are multiplied by the number in the columns
       of that part; the codes stay as they are. The Mul goes.
    3. Only a power of two is folded, such as 1/8 for 64 channels a head: multiplying by it is
       exact, so no sum is rounded otherwise and every code behind it stays the same. Engines fuse
       another number's Mul with the quantizer behind it.
    4. Product, Add and constants must have no other user.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules. Constants of the same name take the place of the old ones."""
        found = [scaled for node in model.graph if (scaled := _match(node)) is not None]
        for scaled in found:
            _fold(model.graph, scaled)
        return ir.passes.PassResult(model, modified=bool(found))


@dataclass(frozen=True)
class _Scaled:
    """Rule 1, found in a graph.

    Attributes:
        multiply: The Mul.
        unscaled: Its input that is not the number.
        factor: The number.
        part: Which part of the Split it is.
        parts: How many parts there are.
        constants: The scales of the weight, and the bias.
    """

    multiply: ir.Node
    unscaled: ir.Value
    factor: float
    part: int
    parts: int
    constants: tuple[ir.Value, ir.Value]


def _match(multiply: ir.Node) -> _Scaled | None:
    if (multiply.domain, multiply.op_type) != ("", "Mul"):
        return None
    if multiply.outputs[0].is_graph_output():
        return None
    for x, number in (multiply.inputs[:2], multiply.inputs[1::-1]):
        constant = constant_of(number)
        if x is None or constant is None or constant.size != 1:
            continue
        piece = _through_layout(x)
        split = None if piece is None else piece.producer()
        factor = float(constant.item())
        if piece is None or split is None or split.op_type != "Split" or not _is_exact(factor):
            continue
        constants = _projection(split)
        if constants is not None:
            part = split.outputs.index(piece)
            return _Scaled(multiply, x, factor, part, len(split.outputs), constants)
    return None


def _is_exact(factor: float) -> bool:
    return factor > 0 and math.frexp(factor)[0] == 0.5


def _through_layout(value: ir.Value) -> ir.Value | None:
    """What enters the Reshapes and Transposes in front of a value that has one user."""
    while only_user(value) is not None:
        node = value.producer()
        if node is None or node.op_type not in {"Reshape", "Transpose"} or node.inputs[0] is None:
            return value
        value = node.inputs[0]
    return None


def _projection(split: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Scales of the weight and the bias of the Linear that a Split takes apart."""
    joint = split.inputs[0]
    add = None if joint is None else joint.producer()
    if joint is None or add is None or add.op_type != "Add" or only_user(joint) is None:
        return None
    product, bias = add.inputs[0], add.inputs[1]
    matmul = None if product is None else product.producer()
    if bias is None or product is None or matmul is None or matmul.op_type != "MatMul":
        return None
    weight = matmul.inputs[1]
    dequantize = None if weight is None else weight.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    scale = dequantize.inputs[1]
    owned = [value for value in (product, weight, scale, bias) if value and only_user(value)]
    if scale is None or len(owned) != 4 or split.attributes.get_int("axis", 0) != -1:
        return None
    vectors = [constant_of(value) for value in (scale, bias)]
    if any(vector is None or vector.ndim != 1 for vector in vectors):
        return None
    return scale, bias


def _fold(graph: ir.Graph, scaled: _Scaled) -> None:
    for value in scaled.constants:
        vector = constant_of(value)
        if vector is not None:
            folded = vector.reshape(scaled.parts, -1).copy()
            folded[scaled.part] *= np.float32(scaled.factor)
            replace_constant(graph, value, folded.reshape(vector.shape))
    output = scaled.multiply.outputs[0]
    output.replace_all_uses_with(scaled.unscaled)
    graph.remove(scaled.multiply, safe=True)
