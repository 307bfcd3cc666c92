"""Transposes moved in front of activation quantizers."""

from __future__ import annotations

from typing import TypeGuard

import onnx_ir as ir

from mimiq_export.fake_quantize import FakeQuantize, fake_quantizes
from mimiq_export.passes.graph_edits import derived_value, only_user, replace_output

__all__ = ["TransposeBeforeQuantizerPass"]


class TransposeBeforeQuantizerPass(ir.passes.InPlacePass):
    """Let the dequantized tensor feed its product directly.

    Engines make an integer product of DequantizeLinear followed by MatMul, not when a Transpose
    stands between them. One scale in all is blind to the order of the elements, so both orders
    give the same bits.

    1. FakeQuantize(x) with one scale in all, used by one Transpose only, becomes
       FakeQuantize(Transpose(x)).
    2. Constants are left to the pass that quantizes weights, which transposes them for good.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules."""
        moved = 0
        for found in fake_quantizes(model):
            transpose = only_user(found.output)
            if found.axis is None and not found.is_weight and _is_transpose(transpose):
                _swap(model.graph, found, transpose)
                moved += 1
        return ir.passes.PassResult(model, modified=moved > 0)


def _is_transpose(node: ir.Node | None) -> TypeGuard[ir.Node]:
    return node is not None and (node.domain, node.op_type) == ("", "Transpose")


def _swap(graph: ir.Graph, found: FakeQuantize, transpose: ir.Node) -> None:
    final = transpose.outputs[0]
    turned = ir.val(f"{transpose.name}_input_turned", final.dtype, final.shape)
    first = ir.node(
        "Transpose",
        [found.x],
        transpose.attributes,
        outputs=[turned],
        name=transpose.name,
    )
    second = ir.node(
        found.node.op_type,
        [turned, found.node.inputs[1]],
        found.node.attributes,
        domain=found.node.domain,
        outputs=[derived_value(final, found.output.name or "")],
        name=found.node.name,
    )
    replace_output(graph, [found.node, transpose], [first, second])
