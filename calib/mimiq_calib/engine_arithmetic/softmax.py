"""Softmax with the roundings of a vectorised kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimiq_calib.engine_arithmetic.exponential import kernel_exp

__all__ = ["KernelSoftmax"]

_LANES = 16
"""Single-precision numbers in a 512-bit register."""

_LOWEST = -103.9720840454
"""Below this number the kernel takes the exponential function of this number."""

# Minimax coefficients of MLAS, ONNX Runtime's kernel library (compute.cpp), highest power first.
_EXP = tuple(
    float.fromhex(number)
    for number in (
        *("0x1.694000p-10", "0x1.125edcp-7", "0x1.555b5ap-5", "0x1.555450p-3", "0x1.fffff6p-2"),
        *("0x1p0", "0x1p0"),
    )
)


class KernelSoftmax(nn.Module):
    r"""Softmax over the last axis, rounded as ONNX Runtime's kernel for x86 rounds.

    1. :math:`e_i = \exp(x_i - \max_j x_j)` with the kernel's polynomial.
    2. Sixteen running sums, one a lane. Then lanes eight apart are added, neighbours, pairs of
       neighbours, and the two halves.
    3. The output is :math:`e_i \cdot r`, with :math:`r` the inverse of the sum.

    torch's own function takes another neighbour for two fifths of all numbers, this one for none
    (a test compares with the kernel itself).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities over the last axis of ``(..., keys)``, single precision."""
        exponentials = kernel_exp((x - x.amax(dim=-1, keepdim=True)).clamp(min=_LOWEST), _EXP)
        return exponentials * (1.0 / _sum_by_lanes(exponentials))


def _sum_by_lanes(x: Tensor) -> Tensor:
    """Rule 2; ``(..., keys)`` to ``(..., 1)``."""
    sums = x.new_zeros(*x.shape[:-1], _LANES)
    for part in torch.split(x, _LANES, dim=-1):
        sums[..., : part.shape[-1]] += part
    low, high = sums.chunk(2, dim=-1)
    sums = low + high
    while sums.shape[-1] > 1:
        sums = sums[..., 0::2] + sums[..., 1::2]
    return sums
