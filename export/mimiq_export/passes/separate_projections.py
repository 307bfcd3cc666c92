"""Queries, keys and values by three Linears instead of one and a Split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mimiq_export.passes.graph_edits import add_constant, constant_of, only_user

__all__ = ["SeparateProjectionsPass"]


class SeparateProjectionsPass(ir.passes.InPlacePass):
    """Cut the weight of a joint projection instead of what it gives.

    A Split copies, and it stands between the product and the quantizers of its parts, which an
    engine can only compute together with a product that they follow directly.

    1. Applies to Split of the last axis into equal parts, behind MatMul with a weight that
       DequantizeLinear gives, and behind the Add of a constant bias if there is one; nothing else
       may use what stands between.
    2. Each part gets a MatMul of its own, with its columns of codes, scales and zero points, and
       its elements of the bias. Every sum has the terms that it had.
    3. Names: those of the joint nodes and constants, with ``_part<i>`` behind them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules."""
        found = [joint for node in model.graph if (joint := _match(node)) is not None]
        for joint in found:
            _rewrite(model.graph, joint)
        return ir.passes.PassResult(model, modified=bool(found))


@dataclass(frozen=True)
class _Joint:
    """Rule 1, found in a graph.

    Attributes:
        dequantize: Gives the weight, ``(in, out)``.
        product: The MatMul.
        add: The Add of the bias, or None.
        bias: ``(out,)``, or None.
        split: The Split.
    """

    dequantize: ir.Node
    product: ir.Node
    add: ir.Node | None
    bias: ir.Value | None
    split: ir.Node


def _match(split: ir.Node) -> _Joint | None:
    if (split.domain, split.op_type) != ("", "Split") or len(split.inputs) != 1:
        return None
    add = split.inputs[0].producer() if split.inputs[0] is not None else None
    bias, product = None, add
    if add is not None and add.op_type == "Add":
        constants = [value for value in add.inputs if constant_of(value) is not None]
        others = [value for value in add.inputs if constant_of(value) is None]
        if len(constants) != 1 or others[0] is None:
            return None
        bias, product = constants[0], others[0].producer()
    else:
        add = None
    if product is None or product.op_type != "MatMul" or product.inputs[1] is None:
        return None
    dequantize = product.inputs[1].producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    joint = _Joint(dequantize, product, add, bias, split)
    return joint if _fits(joint) else None


def _fits(joint: _Joint) -> bool:
    between = [joint.dequantize, joint.product, *([joint.add] if joint.add else [])]
    codes = constant_of(joint.dequantize.inputs[0])
    if codes is None or codes.ndim != 2:
        return False
    if any(only_user(node.outputs[0]) is None for node in between):
        return False
    columns = codes.shape[1]
    bias = constant_of(joint.bias)
    return (
        # The export writes it so; any other way of saying the last axis is left alone.
        joint.split.attributes.get_int("axis", 0) == -1
        and columns % len(joint.split.outputs) == 0
        and joint.dequantize.attributes.get_int("axis", 1) == 1
        and (bias is None or bias.shape == (columns,))
    )


def _rewrite(graph: ir.Graph, joint: _Joint) -> None:
    parts = len(joint.split.outputs)
    for index, output in enumerate(joint.split.outputs):
        weight = [_part(graph, value, index, parts) for value in joint.dequantize.inputs]
        dequantize = _copy(joint.dequantize, index, weight)
        new = [
            dequantize,
            _copy(joint.product, index, [joint.product.inputs[0], dequantize.outputs[0]]),
        ]
        if joint.add is not None:
            bias = _part(graph, joint.bias, index, parts)
            new.append(_copy(joint.add, index, [new[-1].outputs[0], bias]))
        if weight[0] is not None:
            dequantize.outputs[0].shape = weight[0].shape
        for node in new[1:]:
            node.outputs[0].shape = output.shape
        graph.insert_before(joint.split, new)
        name, result = output.name, new[-1].outputs[0]
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        result.name = name
    dead = [joint.split, joint.add, joint.product, joint.dequantize]
    graph.remove([node for node in dead if node is not None], safe=True)


def _copy(node: ir.Node, index: int, inputs: list[ir.Value | None]) -> ir.Node:
    """The same node for one part, with its marks; the shape of what it gives is not known yet."""
    output = ir.val(f"{node.outputs[0].name}_part{index}", node.outputs[0].dtype)
    copied = ir.node(
        node.op_type,
        inputs,
        attributes=dict(node.attributes),
        outputs=[output],
        name=f"{node.name}_part{index}",
    )
    copied.metadata_props.update(node.metadata_props)
    return copied


def _part(graph: ir.Graph, value: ir.Value | None, index: int, parts: int) -> ir.Value | None:
    """The part of a constant along its last axis; one number is the same for all parts."""
    array = constant_of(value)
    if value is None or array is None or array.ndim == 0:
        return value
    part = np.ascontiguousarray(np.split(array, parts, axis=-1)[index])
    return add_constant(graph, f"{value.name}_part{index}", part)
