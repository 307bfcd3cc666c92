"""Fake-quantized activations into QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mimiq_export.fake_quantize import FakeQuantize, fake_quantizes
from mimiq_export.passes.graph_edits import add_constant, derived_value, replace_output
from mimiq_export.passes.node_marks import mark
from mimiq_runtime.errors import OnnxModelError
from mimiq_runtime.grid import CONTAINER_MAX, CONTAINER_MIN

__all__ = ["QuantizeActivationsPass"]

_NEVER_NEGATIVE = {"Relu", "Sigmoid", "Softmax"}


class QuantizeActivationsPass(ir.passes.InPlacePass):
    r"""Quantize every activation to int8, and exactly to its grid.

    1. FakeQuantize of an activation becomes QuantizeLinear and DequantizeLinear, which share one
       scale and one int8 zero point. (Without a zero point the codes would be uint8.)
    2. Where the grid ends before the container does, a Clip to ``qmin * scale .. qmax * scale``
       stands in front. The codes are those of clamping after rounding, for every float: dividing
       and rounding keep order, and the bound itself gives :math:`\mathrm{round}(\mathrm{fl}(q s) /
       s) = q`, since two roundings are far less than half a step for codes up to 128.
    3. A bound that nothing can pass is left out: the container's own end, and 0 behind Softmax,
       Relu or Sigmoid. Without any bound there is no Clip. (NaN has no code in either.)
    4. A grid that leaves the container is moved into it by the zero point, which engines for
       CPUs take into account in their integer sums.
    5. Names: nodes ``<quantizer>/Clip``, ``/QuantizeLinear`` and ``/DequantizeLinear``; values
       ``<quantizer>/clipped``, ``/codes`` and ``/dequantized``; constants ``<quantizer>/lower``,
       ``/upper``, ``/scale`` and ``/zero_point``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules.

        Raises:
            OnnxModelError: An activation has one scale a channel, which no engine runs.
        """
        activations = [found for found in fake_quantizes(model) if not found.is_weight]
        for found in activations:
            _quantize(model.graph, found)
        return ir.passes.PassResult(model, modified=bool(activations))


def _quantize(graph: ir.Graph, found: FakeQuantize) -> None:
    name = found.quantizer
    if found.axis is not None:
        raise OnnxModelError(
            f"{name} has one scale a channel; engines quantize activations with one scale in all."
        )
    scale = add_constant(graph, f"{name}/scale", found.scale)
    zero_point = add_constant(
        graph, f"{name}/zero_point", np.asarray(found.grid.offset, dtype=np.int8)
    )
    new = _clip(graph, found)
    x = new[-1].outputs[0] if new else found.x
    codes = derived_value(found.output, f"{name}/codes", dtype=ir.DataType.INT8)
    dequantized = derived_value(found.output, f"{name}/dequantized")
    quantize = ir.node(
        "QuantizeLinear", [x, scale, zero_point], outputs=[codes], name=f"{name}/QuantizeLinear"
    )
    dequantize = ir.node(
        "DequantizeLinear",
        [codes, scale, zero_point],
        outputs=[dequantized],
        name=f"{name}/DequantizeLinear",
    )
    mark(dequantize, name, found.grid)
    replace_output(graph, [found.node], [*new, quantize, dequantize])


def _clip(graph: ir.Graph, found: FakeQuantize) -> list[ir.Node]:
    """Rules 2 and 3: one Clip, or none."""
    grid = found.grid
    producer = found.x.producer()
    floor = CONTAINER_MIN - grid.offset
    if producer is not None and producer.domain == "" and producer.op_type in _NEVER_NEGATIVE:
        floor = 0
    bounds: list[ir.Value | None] = [None, None]
    if grid.qmin > floor:
        bounds[0] = _bound(graph, found, "lower", grid.qmin)
    if grid.qmax < CONTAINER_MAX - grid.offset:
        bounds[1] = _bound(graph, found, "upper", grid.qmax)
    if bounds == [None, None]:
        return []
    clipped = derived_value(found.output, f"{found.quantizer}/clipped")
    return [
        ir.node("Clip", [found.x, *bounds], outputs=[clipped], name=f"{found.quantizer}/Clip"),
    ]


def _bound(graph: ir.Graph, found: FakeQuantize, name: str, code: int) -> ir.Value:
    return add_constant(graph, f"{found.quantizer}/{name}", np.float32(code) * found.scale)
