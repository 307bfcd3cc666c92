"""Multiplication and addition with one rounding, as a processor's FMA instruction does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["fused_multiply_add"]


def fused_multiply_add(factor: Tensor, other: Tensor, summand: Tensor | float) -> Tensor:
    r"""The single-precision number nearest to :math:`f \cdot o + s`.

    The product of two single-precision numbers is exact in double precision. The sum is rounded
    twice, to double and to single, which differs from one rounding in about one of
    :math:`2^{29}` cases.

    Args:
        factor: Single precision, any shape.
        other: Single precision; broadcasts against ``factor``.
        summand: Single precision or a number; broadcasts against the product.

    Returns:
        Single precision.
    """
    if not isinstance(summand, float):
        summand = summand.double()
    return factor.double().mul(other.double()).add(summand).float()
