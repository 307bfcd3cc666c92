"""The module that quantizes one tensor."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mimiq_calib.quantizers.learned_step import (
    learned_step_quantize,
    lsq_gradient_scale,
    quantize_to_codes,
)
from mimiq_calib.quantizers.range_search import recomputed_scale
from mimiq_runtime.quantization_table import QuantizedTensor, TensorKind

if TYPE_CHECKING:
    from mimiq_calib.quantizers.observer import ValueSample
    from mimiq_runtime.grid import Grid

__all__ = ["Quantizer", "Skew"]


class Skew(StrEnum):
    """Which skewed grids a tensor may have.

    ``none``: the grid is given. ``container``: any that the container stores with zero point 0,
    for operands of a product of two activations. ``any``: the tensor feeds a layer whose bias can
    take out the shift that stands for a zero point in an engine that has none.
    """

    NONE = "none"
    CONTAINER = "container"
    ANY = "any"


class Quantizer(nn.Module):
    """Quantizes one tensor to a grid and back, with a learned scale.

    Args:
        name: Dotted name in the model; it becomes the name in ``quantization.json`` and ONNX.
        kind: Weight or activation.
        bits: Nominal bit width.
        grid: The codes that may come out; calibration may choose a skewed one.
        skew: Which other grids calibration may choose.
        channels: Number of scales, along axis 0; None for one scale in all.
        recomputed: Whether the scale is that of each channel's largest magnitude, taken anew
            whenever the tensor is quantized, instead of being learned. Needs ``channels``.

    Attributes:
        scale: Step of the grid, ``()`` or ``(channels,)``, positive.
        windows: How many entries of axis 0 one image brings to an activation: 1, or its windows.
        enabled: When False the tensor passes unchanged.
        observer: When set the tensor is observed and passes unchanged.
    """

    def __init__(
        self,
        name: str,
        kind: TensorKind,
        bits: int,
        grid: Grid,
        *,
        skew: Skew = Skew.NONE,
        channels: int | None = None,
        recomputed: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.kind = kind
        self.bits = bits
        self.grid = grid
        self.skew = skew
        self.recomputed = recomputed
        self.axis = None if channels is None else 0
        self.scale = nn.Parameter(torch.ones(() if channels is None else (channels,)))
        self.windows = 1
        self.enabled = True
        self.observer: ValueSample | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Quantize ``x`` of any shape (axis 0 is the channel axis) and return its shape."""
        if not self.enabled:
            return x
        if self.observer is not None:
            self.observer.update(x)
            return x
        if torch.compiler.is_exporting():
            return self._symbolic(x)
        if self.recomputed:
            self.recompute(x)
            codes = quantize_to_codes(x.detach(), self._broadcast_scale(x), self.grid)
            # The paper's code lets every gradient pass, also where the largest weight saturates.
            return x + (codes * self._broadcast_scale(x) - x).detach()
        # Features of one image share the step (LSQ, section 2.2): the batch is not counted.
        elements = max(1, x[0].numel() * self.windows)
        return learned_step_quantize(
            x,
            self._broadcast_scale(x),
            self.grid,
            gradient_scale=lsq_gradient_scale(elements, self.grid),
        )

    @torch.no_grad()
    def recompute(self, x: Tensor) -> None:
        """Take the scale of each channel from the tensor as it is now; axis 0 is the channel."""
        self.scale.copy_(recomputed_scale(x.flatten(start_dim=1).float(), self.grid))

    def codes(self, x: Tensor) -> Tensor:
        """Codes of ``x`` as the container stores them, int8, in its shape."""
        codes = quantize_to_codes(x, self._broadcast_scale(x), self.grid)
        return (codes + self.grid.offset).to(torch.int8)

    def describe(self) -> QuantizedTensor:
        """This quantizer's row in ``quantization.json``."""
        return QuantizedTensor(
            name=self.name,
            kind=self.kind,
            bits=self.bits,
            qmin=self.grid.qmin,
            qmax=self.grid.qmax,
            axis=self.axis,
            scale=self.scale.detach().tolist(),
            zero_point=self.grid.offset,
        )

    def extra_repr(self) -> str:
        """Shown when the model is printed."""
        return f"{self.kind}, {self.bits} bits, codes {self.grid.qmin}..{self.grid.qmax}"

    def _broadcast_scale(self, x: Tensor) -> Tensor:
        return self.scale if self.axis is None else self.scale.view(-1, *[1] * (x.ndim - 1))

    def _symbolic(self, x: Tensor) -> Tensor:
        """One node ``mimiq_deploy::FakeQuantize`` in the captured graph, for the export passes."""
        attributes: dict[str, Any] = {
            "qmin": self.grid.qmin,
            "qmax": self.grid.qmax,
            "quantizer": self.name,
        }
        if self.axis is not None:
            attributes["axis"] = self.axis
        return torch.onnx.ops.symbolic(
            "mimiq_deploy::FakeQuantize",
            (x, self.scale),
            attributes,
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )
