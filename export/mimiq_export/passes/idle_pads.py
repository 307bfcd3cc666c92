"""Pads that add nothing, taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["RemoveIdlePadsPass"]


class RemoveIdlePadsPass(ir.passes.InPlacePass):
    """Remove every Pad that adds nothing on any side.

    Swin pads its grid of tokens to a multiple of the window, and most grids are one; engines
    would copy the tensor.

    1. Applies to a Pad whose amounts are constants and all 0.
    2. Its users take its input. A Pad that gives an output of the graph stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules."""
        idle = [node for node in model.graph if _is_idle(node)]
        for pad in idle:
            x = pad.inputs[0]
            assert x is not None  # a Pad has something to pad
            ir.convenience.replace_all_uses_with(pad.outputs[0], x)
            model.graph.remove(pad, safe=True)
        return ir.passes.PassResult(model, modified=bool(idle))


def _is_idle(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("", "Pad") or node.outputs[0].is_graph_output():
        return False
    amounts = _constant(node.inputs[1])
    return amounts is not None and not amounts.any()


def _constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()
