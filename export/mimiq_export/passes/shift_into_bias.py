"""Grids that leave the container, moved into it by an addition that a bias takes out again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mimiq_export.fake_quantize import FakeQuantize, fake_quantizes
from mimiq_export.passes.graph_edits import (
    add_constant,
    constant_of,
    derived_value,
    only_user,
    replace_output,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ShiftIntoBiasPass", "shift_grid"]


class ShiftIntoBiasPass(ir.passes.InPlacePass):
    r"""Hold the skewed input of a Linear without a zero point.

    With codes :math:`q` of a grid that the container holds only as :math:`q + o`,

    .. math:: \sum_k s q_k \hat W_{kn} + b_n
        = \sum_k s (q_k + o) \hat W_{kn} + \left(b_n - s o \sum_k \hat W_{kn}\right).

    1. Applies to a FakeQuantize whose grid has an offset, and which is the left operand of
       products (MatMul, Gemm) with weights that are DequantizeLinear of constants already.
    2. An Add of ``offset * scale`` stands in front; the quantizer gets the grid moved by the
       offset. Its codes are the stored ones. (The Add rounds: in single precision a code can
       differ from that of a zero point where ``x / scale`` is within 2^-16 of a tie.)
    3. The bias of each product, the constant of the Add behind it, is lowered by
       ``scale * offset`` times the sum of the *quantized* weight's column: of integers, exactly.
       A product without such an Add gets one.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules; quantizers that they do not fit keep their offset."""
        moved = 0
        for found in fake_quantizes(model):
            if found.grid.offset and not found.is_weight:
                sums = [_column_sums(use.node, use.idx) for use in found.output.uses()]
                products = [use.node for use in found.output.uses()]
                if products and all(each is not None for each in sums):
                    constant = float(found.scale) * found.grid.offset
                    for product, each in zip(products, sums, strict=True):
                        if each is not None:
                            _take_out(model.graph, product, constant * each)
                    shift_grid(model.graph, found)
                    moved += 1
        return ir.passes.PassResult(model, modified=moved > 0)


def shift_grid(graph: ir.Graph, found: FakeQuantize) -> ir.Value:
    """Put an Add in front of a quantizer and move its grid into the container.

    Returns:
        The quantizer's new output: what it was, and ``offset * scale`` more everywhere.
    """
    name = found.quantizer
    amount = add_constant(graph, f"{name}/shift", np.float32(found.grid.offset) * found.scale)
    shifted = derived_value(found.output, f"{name}/shifted")
    output = derived_value(found.output, f"{name}/FakeQuantize_shifted_output")
    add = ir.node("Add", [found.x, amount], outputs=[shifted], name=f"{name}/Shift")
    stored = found.grid.stored
    attributes: dict[str, str | int] = {"quantizer": name, "qmin": stored.qmin, "qmax": stored.qmax}
    quantize = ir.node(
        found.node.op_type,
        [shifted, found.node.inputs[1]],
        attributes,
        domain=found.node.domain,
        outputs=[output],
        name=found.node.name,
    )
    replace_output(graph, [found.node], [add, quantize])
    return output


def _column_sums(product: ir.Node, operand: int) -> NDArray[np.float64] | None:
    """Sum of each column of the dequantized weight, ``(columns,)``; None for other nodes."""
    if product.domain or product.op_type not in {"Gemm", "MatMul"} or operand != 0:
        return None
    plain = product.op_type == "MatMul" or (
        len(product.inputs) == 2
        and product.attributes.get_float("alpha", 1.0) == 1.0
        and product.attributes.get_int("transA", 0) == 0
    )
    weight = product.inputs[1]
    dequantize = None if weight is None else weight.producer()
    if not plain or dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    codes, scale = constant_of(dequantize.inputs[0]), constant_of(dequantize.inputs[1])
    if codes is None or scale is None or codes.ndim != 2:
        return None
    rows = product.attributes.get_int("transB", 0)
    columns = 1 - rows
    per_column = scale.ndim == 0 or dequantize.attributes.get_int("axis", 1) == columns
    if not per_column:
        return None
    sums: NDArray[np.float64] = codes.sum(axis=rows, dtype=np.int64) * scale.astype(np.float64)
    return sums


def _take_out(graph: ir.Graph, product: ir.Node, excess: NDArray[np.float64]) -> None:
    """Rule 3."""
    output = product.outputs[0]
    name = (product.name or "").removesuffix(product.op_type)
    add = only_user(output)
    bias = _bias(add, output)
    total = (-excess if bias is None else bias - excess).astype(np.float32)
    lowered = add_constant(graph, f"{name}bias_without_shift", total)
    if add is not None and bias is not None:
        index = 1 - add.inputs.index(output)
        add.replace_input_with(index, lowered)
        return
    unshifted = derived_value(output, f"{name}Unshift_output")
    renamed = derived_value(output, f"{name}{product.op_type}_shifted_output")
    again = ir.node(
        product.op_type, product.inputs, product.attributes, outputs=[renamed], name=product.name
    )
    unshift = ir.node("Add", [renamed, lowered], outputs=[unshifted], name=f"{name}Unshift")
    replace_output(graph, [product], [again, unshift])


def _bias(add: ir.Node | None, product: ir.Value) -> NDArray[np.float64] | None:
    """The constant vector that an Add adds to a product."""
    if add is None or (add.domain, add.op_type) != ("", "Add"):
        return None
    other = constant_of(add.inputs[1 - add.inputs.index(product)])
    return None if other is None or other.ndim != 1 else other.astype(np.float64)
