"""Taking a constant that was added to the input of a product out of its output."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mimiq_export.passes.graph_edits import add_constant, derived_value
from mimiq_runtime.errors import OnnxModelError

__all__ = ["take_out_shift"]


def take_out_shift(graph: ir.Graph, product: ir.Node, shift: np.float32) -> None:
    r"""Subtract what a shift of the first operand makes of a product with a constant weight.

    :math:`(x + c 1) \hat W = x \hat W + c \, 1^\top \hat W`. The second term is a constant for each
    output channel, computed from the quantized weight; it is added behind the product, where
    later passes and engines fold it into the bias.

    Args:
        graph: The graph of the product.
        product: MatMul or Gemm whose second operand is a dequantized constant.
        shift: The constant c.

    Raises:
        OnnxModelError: The node is no such product.
    """
    weight = _dequantized_weight(product)
    constant = (-np.float64(shift) * weight.sum(axis=0)).astype(np.float32)
    name = product.name or "product"
    output = product.outputs[0]
    unshift = add_constant(graph, f"{name}/unshift", constant)
    corrected = derived_value(output, f"{name}/unshifted")
    users = list(output.uses())
    add = ir.node("Add", [output, unshift], outputs=[corrected], name=f"{name}/Unshift")
    graph.insert_after(product, add)
    for use in users:
        use.node.replace_input_with(use.idx, corrected)
    _merge_with_bias(graph, add, constant)


def _merge_with_bias(graph: ir.Graph, add: ir.Node, constant: np.ndarray) -> None:
    """One Add in all, where the bias follows directly and is used here alone."""
    uses = list(add.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return
    following = uses[0].node
    bias = following.inputs[1 - uses[0].idx]
    if bias is None or bias.const_value is None or bias.shape is None or bias.shape.rank() != 1:
        return
    merged = (bias.const_value.numpy().astype(np.float64) + constant).astype(np.float32)
    name = f"{add.name}/bias"
    following.replace_input_with(1 - uses[0].idx, add_constant(graph, name, merged))
    following.replace_input_with(uses[0].idx, add.inputs[0])
    graph.remove(add, safe=True)


def _dequantized_weight(product: ir.Node) -> np.ndarray:
    """The weight ``(inputs, outputs)`` as the engine dequantizes it, in double precision."""
    operand = product.inputs[1] if product.op_type in {"MatMul", "Gemm"} else None
    producer = operand.producer() if operand is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        raise OnnxModelError(
            f"The input of {product.name} ({product.op_type}) has a grid beyond the int8 "
            "container, and only a product with a constant weight can take out its shift."
        )
    codes, scale = (value.const_value for value in producer.inputs[:2] if value is not None)
    if codes is None or scale is None:
        raise OnnxModelError(f"The weight of {product.name} is not a constant of the graph.")
    axis = producer.attributes["axis"].as_int()
    scales = scale.numpy().astype(np.float64)
    weight = codes.numpy().astype(np.float64)
    weight = weight * np.expand_dims(scales, axis=1 - axis % 2)
    transposed = "transB" in product.attributes and product.attributes["transB"].as_int() == 1
    return weight.T if transposed else weight
