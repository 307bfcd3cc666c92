"""Two Transposes in a row as one."""

from __future__ import annotations

import onnx_ir as ir

from mimiq_export.passes.graph_edits import derived_value, only_user, replace_output

__all__ = ["MergeTransposesPass"]


class MergeTransposesPass(ir.passes.InPlacePass):
    """Move elements once where they are moved twice.

    Keys are turned to ``(batch, heads, tokens, channels)`` and then once more for their product.

    1. Transpose by ``first``, used by one Transpose by ``second`` only, becomes one Transpose by
       ``first[second[i]]``, under the name of the second.
    2. What comes out in the order it went in is left as it is: it is not seen in practice.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules."""
        merged = 0
        for node in list(model.graph):
            follower = only_user(node.outputs[0]) if _is_turn(node) else None
            if follower is not None and _is_turn(follower):
                _merge(model.graph, node, follower)
                merged += 1
        return ir.passes.PassResult(model, modified=merged > 0)


def _is_turn(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("", "Transpose") and "perm" in node.attributes


def _merge(graph: ir.Graph, first: ir.Node, second: ir.Node) -> None:
    before, after = first.attributes["perm"].as_ints(), second.attributes["perm"].as_ints()
    turned = ir.node(
        "Transpose",
        first.inputs,
        {"perm": [before[axis] for axis in after]},
        outputs=[derived_value(second.outputs[0], second.outputs[0].name or "")],
        name=second.name,
    )
    replace_output(graph, [first, second], [turned])
