"""One quantizer where several quantize the same tensor alike."""

from __future__ import annotations

import onnx_ir as ir

from mimiq_export.fake_quantize import FakeQuantize, fake_quantizes

__all__ = ["ShareQuantizersPass"]


class ShareQuantizersPass(ir.passes.InPlacePass):
    """Quantize a tensor once for all products that take it.

    A LayerNorm's output may feed several Linears, each with a quantizer of its own. Engines
    fuse one quantizer with the LayerNorm; a second one reads the tensor again.

    1. FakeQuantize nodes of one tensor with the same grid, axis and bits of the scale become the
       first of them.
    2. Quantizers that differ in anything stay: sharing them would change codes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules."""
        first: dict[tuple[object, ...], FakeQuantize] = {}
        shared = 0
        for found in fake_quantizes(model):
            key = (found.x, found.grid, found.axis, found.scale.shape, found.scale.tobytes())
            kept = first.setdefault(key, found)
            if kept is not found and not found.output.is_graph_output():
                found.output.replace_all_uses_with(kept.output)
                model.graph.remove(found.node, safe=True)
                shared += 1
        return ir.passes.PassResult(model, modified=shared > 0)
