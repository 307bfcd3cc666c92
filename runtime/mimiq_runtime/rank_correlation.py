"""Spearman's rank correlation, without scipy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["average_ranks", "spearman"]


def average_ranks(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Rank of each value from 1; equal values share the mean of their ranks.

    Args:
        values: Array (N,) of finite numbers.
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def spearman(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> float | None:
    """Pearson's correlation of the ranks: 1 when both grow together, -1 when they run apart.

    Args:
        first: Array (N,) of finite numbers.
        second: Array (N,) of finite numbers.

    Returns:
        -1 to 1; None where either does not vary, and with fewer than three points, which always
        lie on a line.

    Raises:
        InvalidInputError: The shapes differ, or a number is not finite.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise InvalidInputError(
            f"A correlation is of two rows of numbers; got shapes {first.shape}, {second.shape}."
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InvalidInputError("A correlation is of finite numbers; got NaN or infinity.")
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    a, b = (ranks - ranks.mean() for ranks in (average_ranks(first), average_ranks(second)))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
