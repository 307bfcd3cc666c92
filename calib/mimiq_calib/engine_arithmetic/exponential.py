"""The exponential function of a vectorised kernel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from mimiq_calib.engine_arithmetic.fused_multiply_add import fused_multiply_add

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["kernel_exp", "polynomial"]

# ln 2 in two parts, of which the first one has few enough bits for exact multiples.
_LN2 = (-6.93145752e-1, -1.42860677e-6)
# Adding and taking away this number leaves the nearest whole number.
_ROUNDING = 1.25829120e7


def kernel_exp(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    r"""The exponential function, :math:`e^x = 2^k p(x - k \ln 2)` with whole :math:`k`.

    Rounded where MLAS, ONNX Runtime's kernel library for x86, rounds.

    Args:
        x: Single precision, any shape.
        coefficients: Of :math:`p`, highest power first. Kernels differ in them.

    Returns:
        Single precision, in the shape of ``x``.
    """
    power = fused_multiply_add(x, x.new_tensor(1.0 / math.log(2.0)), _ROUNDING) - _ROUNDING
    high, low = x.new_tensor(_LN2)
    remainder = fused_multiply_add(power, low, fused_multiply_add(power, high, x))
    return torch.ldexp(polynomial(coefficients, remainder), power)


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Horner's scheme with fused multiply-adds and coefficients in single precision.

    Args:
        coefficients: Highest power first.
        x: Single precision, any shape.

    Returns:
        Single precision, in the shape of ``x``.
    """
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = fused_multiply_add(value, x, x.new_tensor(coefficient))
    return value
