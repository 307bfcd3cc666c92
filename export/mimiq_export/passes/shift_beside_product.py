"""Grids that leave the container, in products of two activations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mimiq_export.fake_quantize import FakeQuantize, fake_quantizes
from mimiq_export.passes.graph_edits import add_constant, derived_value, replace_output
from mimiq_export.passes.shift_into_bias import shift_grid
from mimiq_runtime.errors import OnnxModelError

__all__ = ["ShiftBesideProductPass"]


class ShiftBesideProductPass(ir.passes.InPlacePass):
    r"""Hold the attention probabilities 0..255 without a zero point.

    There is no bias to take the shift out, but a sum over the other operand, which does not
    depend on the row. With probabilities :math:`s q` stored as :math:`q + o`,

    .. math:: \sum_k s q_{ik} \hat V_{kj}
        = \sum_k s (q_{ik} + o) \hat V_{kj} - s o \sum_k \hat V_{kj}.

    1. Applies to a FakeQuantize whose grid has an offset, and which is the left operand of one
       MatMul with another activation.
    2. The quantizer is moved into the container by an Add in front, as by
       :class:`~mimiq_export.passes.shift_into_bias.ShiftIntoBiasPass`.
    3. ReduceSum over the keys of the other operand, times ``-offset * scale``, is added to the
       product: one value for each image, head and channel.
    4. Any other grid with an offset is refused: run this pass after all others that move grids.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules.

        Raises:
            OnnxModelError: A grid leaves the container where no rule fits.
        """
        moved = 0
        for found in fake_quantizes(model):
            if found.grid.offset:
                _shift(model.graph, found, _product(found))
                moved += 1
        return ir.passes.PassResult(model, modified=moved > 0)


def _product(found: FakeQuantize) -> ir.Node:
    uses = found.output.uses()
    for use in uses:
        is_left_of_matmul = use.node.op_type == "MatMul" and use.idx == 0 and len(uses) == 1
        if is_left_of_matmul and not found.is_weight:
            return use.node
    raise OnnxModelError(
        f"{found.quantizer} has the codes {found.grid.qmin}..{found.grid.qmax}, which int8 holds "
        "with a zero point only, and nothing beside it can take an addition out; calibrate it "
        "with 7 bits or fewer, or export for an engine with zero points."
    )


def _shift(graph: ir.Graph, found: FakeQuantize, product: ir.Node) -> None:
    name = found.quantizer
    shift_grid(graph, found)
    left, other = product.inputs
    output = product.outputs[0]
    axes = add_constant(graph, f"{name}/keys", np.asarray([-2], dtype=np.int64))
    excess = np.float32(-found.grid.offset) * found.scale
    factor = add_constant(graph, f"{name}/unshift", excess)
    sums = ir.val(f"{name}/key_sums", output.dtype, _summed(other))
    amount = ir.val(f"{name}/excess", output.dtype, _summed(other))
    raw = derived_value(output, f"{name}/shifted_product")
    total = derived_value(output, output.name or "")
    replace_output(
        graph,
        [product],
        [
            ir.node(
                "ReduceSum",
                [other, axes],
                {"keepdims": 1},
                outputs=[sums],
                name=f"{name}/ReduceSum",
            ),
            ir.node("Mul", [sums, factor], outputs=[amount], name=f"{name}/Excess"),
            ir.node("MatMul", [left, other], outputs=[raw], name=product.name),
            ir.node("Add", [raw, amount], outputs=[total], name=f"{name}/Unshift"),
        ],
    )


def _summed(other: ir.Value | None) -> ir.Shape | None:
    if other is None or other.shape is None:
        return None
    sizes = list(other.shape)
    sizes[-2] = 1
    return ir.Shape(sizes)
