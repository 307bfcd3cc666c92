"""Codes without negative ones as uint8, so that they need no zero point."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mimiq_export.passes.graph_edits import add_constant, constant_of, only_user
from mimiq_runtime.grid import CONTAINER_MIN

__all__ = ["UnsignedCodesPass"]


class UnsignedCodesPass(ir.passes.InPlacePass):
    """Store the codes 0..255 as they are, instead of moved into int8.

    A zero point costs a product one more sum, and some engines do not take it at all where both
    operands are activations, as the attention probabilities and the values.

    1. Applies to QuantizeLinear with one int8 zero point of -128, and the DequantizeLinear that
       alone uses its codes with the same zero point.
    2. The zero point becomes 0 in uint8. Both containers have 256 codes in the same order, so
       that every value stays what it was.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules."""
        found = [pair for node in model.graph if (pair := _match(node)) is not None]
        for quantize, dequantize in found:
            _rewrite(model.graph, quantize, dequantize)
        return ir.passes.PassResult(model, modified=bool(found))


def _match(quantize: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    if (quantize.domain, quantize.op_type) != ("", "QuantizeLinear") or len(quantize.inputs) != 3:
        return None
    dequantize = only_user(quantize.outputs[0])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    zero_points = [constant_of(node.inputs[2]) for node in (quantize, dequantize)]
    at_the_end = all(
        zero_point is not None
        and zero_point.dtype == np.int8
        and zero_point.ndim == 0
        and int(zero_point) == CONTAINER_MIN
        for zero_point in zero_points
    )
    return (quantize, dequantize) if at_the_end else None


def _rewrite(graph: ir.Graph, quantize: ir.Node, dequantize: ir.Node) -> None:
    old = quantize.inputs[2]
    name = "" if old is None else old.name or ""
    zero = add_constant(graph, f"{name}_uint8", np.asarray(0, dtype=np.uint8))
    for node in (quantize, dequantize):
        node.replace_input_with(2, zero)
    quantize.outputs[0].dtype = ir.DataType.UINT8
