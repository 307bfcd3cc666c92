"""LayerNorm with the roundings of a vectorised kernel."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn

from mimiq_calib.engine_arithmetic.fused_multiply_add import fused_multiply_add

__all__ = ["KernelLayerNorm"]

_LANES = 8
"""Single-precision numbers in a 256-bit register."""


class KernelLayerNorm(nn.Module):
    r"""LayerNorm over the last axis, rounded where ONNX Runtime's x86 kernel rounds.

    The formula is that of Ba et al., 2016 (arXiv 1607.06450). Only the roundings are special:

    1. The mean is summed in double precision and rounded once.
    2. Squared deviations go into eight running sums with fused multiply-adds; the sums are then
       added in halves (8 to 4 to 2 to 1).
    3. The output is :math:`\mathrm{fma}((x - m) \cdot r, w, b)` with
       :math:`r = 1 / \sqrt{v + \epsilon}`.

    The rules were found from the kernel's outputs (ONNX Runtime 1.32), and a test compares with
    the kernel: for a multiple of eight channels all results are the same bits, for other numbers
    nearly all.

    Args:
        norm: The layer whose parameters are taken over; it has a weight and a bias.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.eps = norm.eps

    @staticmethod
    def applies_to(module: nn.Module) -> TypeGuard[nn.LayerNorm]:
        """Whether a module is a LayerNorm over the last axis with a weight and a bias."""
        return (
            isinstance(module, nn.LayerNorm)
            and len(module.normalized_shape) == 1
            and module.weight is not None
            and module.bias is not None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., channels)`` over the channels."""
        mean = x.double().mean(dim=-1, keepdim=True).float()
        deviation = x - mean
        variance = _sum_of_squares(deviation) / x.shape[-1]
        # torch's vectorised square root in single precision is not the nearest number.
        inverse = 1.0 / (variance + self.eps).double().sqrt().float()
        return fused_multiply_add(deviation * inverse, self.weight, self.bias)


def _sum_of_squares(x: Tensor) -> Tensor:
    """Rule 2; ``(..., channels)`` to ``(..., 1)``. What is left of the lanes comes last."""
    channels = x.shape[-1]
    whole = channels - channels % _LANES
    sums = x.new_zeros(*x.shape[:-1], _LANES)
    for start in range(0, whole, _LANES):
        part = x[..., start : start + _LANES]
        sums = fused_multiply_add(part, part, sums)
    while sums.shape[-1] > 1:
        low, high = sums.chunk(2, dim=-1)
        sums = low + high
    for start in range(whole, channels):
        part = x[..., start : start + 1]
        sums = fused_multiply_add(part, part, sums)
    return sums
