"""The bias of a Gemm as an Add of its own, so that it can stay in floating point."""

from __future__ import annotations

import onnx_ir as ir

from mimiq_export.fake_quantize import is_fake_quantize
from mimiq_export.passes.graph_edits import derived_value, replace_output

__all__ = ["SplitGemmBiasPass"]


class SplitGemmBiasPass(ir.passes.InPlacePass):
    """Write a quantized Gemm with a bias as a Gemm without one and an Add.

    ONNX Runtime runs a Gemm in integers only if its bias is quantized to int32, which would round
    it, or if it has none. (MatMul and Add would be merged back into one Gemm with a bias.)

    1. Applies to a Gemm with a bias and ``beta = 1`` whose second input is a FakeQuantize; any
       other Gemm is left alone.
    2. The Gemm loses the bias and keeps all else.
    3. An Add behind it adds the bias.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules."""
        gemms = [node for node in model.graph if _applies(node)]
        for gemm in gemms:
            _split(model.graph, gemm)
        return ir.passes.PassResult(model, modified=bool(gemms))


def _applies(node: ir.Node) -> bool:
    return (
        (node.domain, node.op_type) == ("", "Gemm")
        and len(node.inputs) == 3
        and node.inputs[1] is not None
        and node.inputs[2] is not None
        and node.attributes.get_float("beta", 1.0) == 1.0
        and is_fake_quantize(node.inputs[1].producer())
    )


def _split(graph: ir.Graph, gemm: ir.Node) -> None:
    left, right, bias = gemm.inputs
    name = gemm.name or "Gemm"
    product = derived_value(gemm.outputs[0], f"{name}_product")
    attributes = {key: value for key, value in gemm.attributes.items() if key != "beta"}
    total = derived_value(gemm.outputs[0], f"{name}_output")
    replace_output(
        graph,
        [gemm],
        [
            ir.node("Gemm", [left, right], attributes, outputs=[product], name=name),
            ir.node(
                "Add", [product, bias], outputs=[total], name=f"{name.removesuffix('Gemm')}Add"
            ),
        ],
    )
