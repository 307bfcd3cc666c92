"""Fake-quantized weights into int8 constants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mimiq_export.fake_quantize import FakeQuantize, fake_quantizes
from mimiq_export.passes.graph_edits import add_constant, only_user, replace_output
from mimiq_export.passes.node_marks import mark
from mimiq_export.weight_codes import weight_codes
from mimiq_runtime.errors import OnnxModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["QuantizeWeightsPass"]


class QuantizeWeightsPass(ir.passes.InPlacePass):
    """Write the codes of every quantized weight as int8, with a DequantizeLinear behind them.

    1. FakeQuantize of a constant becomes DequantizeLinear of its int8 codes. The scales stay in
       single precision, one a slice of ``axis``.
    2. A Transpose that alone uses the result is carried out on the codes, and the axis moves
       along: engines want no node between DequantizeLinear and the product.
    3. ``axis`` is always written: TensorRT takes a missing one for 0, ONNX for 1. With one scale
       in all there is no axis.
    4. A zero point of int8 zeros is always written. It is optional here, yet every engine knows
       the full form, and with it the type of the codes cannot be mistaken.
    5. Names: node ``<quantizer>/DequantizeLinear``, constants ``<quantizer>/codes``, ``/scale``
       and ``/zero_point``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules. The floating-point weights stay behind, unused."""
        weights = [found for found in fake_quantizes(model) if found.is_weight]
        for found in weights:
            _quantize(model.graph, found)
        return ir.passes.PassResult(model, modified=bool(weights))


def _quantize(graph: ir.Graph, found: FakeQuantize) -> None:
    codes = weight_codes(_constant(found), found.scale, found.grid, found.axis)
    axis, old = found.axis, [found.node]
    user = only_user(found.output)
    if user is not None and (user.domain, user.op_type) == ("", "Transpose"):
        permutation = _permutation(user, codes.ndim)
        codes = np.ascontiguousarray(codes.transpose(permutation))
        axis = None if axis is None else permutation.index(axis)
        old.append(user)
    name = found.quantizer
    output = ir.val(f"{name}/dequantized", ir.DataType.FLOAT, codes.shape)
    dequantize = ir.node(
        "DequantizeLinear",
        [
            add_constant(graph, f"{name}/codes", codes),
            add_constant(graph, f"{name}/scale", found.scale),
            add_constant(graph, f"{name}/zero_point", np.zeros_like(found.scale, dtype=np.int8)),
        ],
        {} if axis is None else {"axis": axis},
        outputs=[output],
        name=f"{name}/DequantizeLinear",
    )
    mark(dequantize, name, found.grid)
    replace_output(graph, old, [dequantize])


def _constant(found: FakeQuantize) -> NDArray[np.float32]:
    tensor = found.x.const_value
    if tensor is None:
        raise OnnxModelError(f"The weight of {found.quantizer} has no value.")
    weight: NDArray[np.float32] = np.asarray(tensor.numpy(), dtype=np.float32)
    if np.isnan(weight).any():
        raise OnnxModelError(f"The weight of {found.quantizer} is not a number in places (NaN).")
    return weight


def _permutation(transpose: ir.Node, rank: int) -> list[int]:
    attribute = transpose.attributes.get("perm")
    return list(range(rank))[::-1] if attribute is None else list(attribute.as_ints())
