"""Codes of at most 4 bits stored two in a byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mimiq_export.passes.graph_edits import add_constant
from mimiq_export.passes.node_marks import marked_grid, marked_quantizer
from mimiq_runtime.errors import InvalidInputError, OnnxModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PackInt4WeightsPass"]

INT4_OPSET, INT4_IR_VERSION = 21, 10
"""The first that know INT4."""

_LAYOUT = {("", name) for name in ("Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")}


class PackInt4WeightsPass(ir.passes.InPlacePass):
    """Store weights as ONNX INT4 and leave the arithmetic as it is.

    1. A marked DequantizeLinear of int8 constants whose grid lies within -8..7 gets its codes
       from an INT4 constant of the same name through a Cast to int8, ``<quantizer>/Cast``. Engines
       carry out the Cast while loading, and what they then see is the unpacked graph. (To
       dequantize INT4 directly would keep ONNX Runtime from integer products: it has none of
       int8 with INT4.)
    2. The opset is raised to 21. Of the operators of opset 20, all but GroupNormalization mean
       there what they meant before.
    3. At opset 21 ONNX Runtime 1.32 cannot load an int8 DequantizeLinear in front of a Transpose,
       Reshape, Squeeze, Unsqueeze or Slice: it moves the dequantization behind the layout operator
       and asks for the wrong type. There, activations are stored as uint8, codes and zero point
       128 higher, which is the same grid. Everywhere else int8 stays, zero points included:
       without them ONNX Runtime makes no integer products.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules.

        Raises:
            InvalidInputError: No weight has 4 bits or fewer.
        """
        weights = [found for node in model.graph if (found := _small_codes(node)) is not None]
        if not weights:
            raise InvalidInputError(
                "Packed INT4 needs weights of at most 4 bits, and this model has none; calibrate "
                "it with fewer bits or export it without --packed-int4."
            )
        for dequantize, codes in weights:
            _pack(model.graph, dequantize, codes)
        model.graph.opset_imports[""] = max(model.graph.opset_imports[""], INT4_OPSET)
        model.ir_version = max(model.ir_version, INT4_IR_VERSION)
        for quantize in list(model.graph):
            if _is_int8_before_layout(quantize):
                _store_as_uint8(model.graph, quantize)
        return ir.passes.PassResult(model, modified=True)


def _small_codes(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """A weight's DequantizeLinear with its codes, where they fit; rule 1."""
    codes = node.inputs[0] if marked_quantizer(node) is not None else None
    if codes is None or not codes.is_initializer() or codes.dtype != ir.DataType.INT8:
        return None
    grid = marked_grid(node)
    return (node, codes) if grid.qmin >= -8 and grid.qmax <= 7 else None


def _pack(graph: ir.Graph, dequantize: ir.Node, codes: ir.Value) -> None:
    array, name = _int8(codes), codes.name or ""
    stored = ir.val(name, const_value=ir.tensor(array, dtype=ir.DataType.INT4, name=name))
    unpacked = ir.val(f"{name}_int8", ir.DataType.INT8, array.shape)
    cast = ir.node(
        "Cast",
        [stored],
        {"to": ir.DataType.INT8},
        outputs=[unpacked],
        name=f"{marked_quantizer(dequantize)}/Cast",
    )
    dequantize.replace_input_with(0, unpacked)
    graph.initializers.pop(name)
    graph.register_initializer(stored)
    graph.insert_before(dequantize, cast)


def _is_int8_before_layout(node: ir.Node) -> bool:
    """Whether rule 3 applies to this QuantizeLinear."""
    if (node.domain, node.op_type) != ("", "QuantizeLinear"):
        return False
    codes = node.outputs[0]
    return codes.dtype == ir.DataType.INT8 and any(
        (user.node.domain, user.node.op_type) in _LAYOUT
        for dequantize in codes.uses()
        for user in dequantize.node.outputs[0].uses()
    )


def _store_as_uint8(graph: ir.Graph, quantize: ir.Node) -> None:
    codes, zero_point = quantize.outputs[0], quantize.inputs[2]
    if zero_point is None:
        raise OnnxModelError(f"{quantize.name} has no zero point, so its codes have no type.")
    raised = (_int8(zero_point).astype(np.int16) + 128).astype(np.uint8)
    constant = add_constant(graph, f"{zero_point.name}_uint8", raised)
    for node in (quantize, *(use.node for use in codes.uses())):
        node.replace_input_with(2, constant)
    codes.dtype = ir.DataType.UINT8
    if not zero_point.uses():
        graph.initializers.pop(zero_point.name or "")


def _int8(constant: ir.Value) -> NDArray[np.int8]:
    if constant.const_value is None:
        raise OnnxModelError(f"{constant.name} is not a constant of the graph.")
    return np.asarray(constant.const_value.numpy(), dtype=np.int8)
