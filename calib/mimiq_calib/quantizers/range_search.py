"""Choosing a scale for given values: by largest value, percentile, mean magnitude or least error.

All functions take values as ``(channels, samples)`` and return one scale a channel; a tensor with
one scale in all is one channel.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mimiq_calib.quantizers.learned_step import quantize_to_codes

if TYPE_CHECKING:
    from mimiq_runtime.grid import Grid

__all__ = [
    "RangeMethod",
    "lsq_scale",
    "minmax_scale",
    "mse_scale",
    "percentile_scale",
    "recomputed_scale",
    "search_scale",
]

SMALLEST_SCALE = 2.0**-24
"""Scales below half precision's smallest subnormal would be zero in a TensorRT graph."""


class RangeMethod(StrEnum):
    """How a range is chosen."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"
    LSQ = "lsq"


def minmax_scale(values: Tensor, grid: Grid) -> Tensor:
    """The smallest scale that saturates no value.

    Args:
        values: ``(channels, samples)``.
        grid: The grid to cover the values with. Negative values do not count where the grid
            has no negative codes.

    Returns:
        ``(channels,)``, positive.
    """
    return _covering_scale(values.amin(dim=1), values.amax(dim=1), grid)


def percentile_scale(values: Tensor, grid: Grid, *, percentile: float) -> Tensor:
    """The smallest scale that saturates at most the given share of the values on either side.

    Args:
        values: ``(channels, samples)``.
        grid: The grid to cover the values with.
        percentile: 50 to 100, in percent: the range goes from the ``100 - percentile`` to the
            ``percentile`` quantile of each channel, linearly interpolated.

    Returns:
        ``(channels,)``, positive.
    """
    upper = percentile / 100.0
    # numpy-like quantiles; torch.quantile refuses more than 16 million values.
    ordered = values.sort(dim=1).values
    low = _interpolated(ordered, 1.0 - upper)
    high = _interpolated(ordered, upper)
    return _covering_scale(low, high, grid)


def mse_scale(values: Tensor, grid: Grid, *, candidates: int = 80) -> Tensor:
    """The scale with the least mean squared error among fractions of the min-max scale.

    Args:
        values: ``(channels, samples)``.
        grid: The grid to quantize to.
        candidates: Fractions ``1/candidates .. 1`` of the min-max scale are tried.

    Returns:
        ``(channels,)``, positive. The largest of equally good scales wins.
    """
    largest = minmax_scale(values, grid)
    best_scale = largest.clone()
    best_error = torch.full_like(largest, torch.inf)
    for step in range(candidates, 0, -1):
        scale = (largest * (step / candidates)).clamp_min(SMALLEST_SCALE)
        column = scale[:, None]
        error = (quantize_to_codes(values, column, grid) * column).sub_(values).square_().mean(1)
        better = error < best_error
        best_scale = torch.where(better, scale, best_scale)
        best_error = torch.where(better, error, best_error)
    return best_scale


def lsq_scale(values: Tensor, grid: Grid) -> Tensor:
    r"""The start of learned step size quantization: :math:`2 \, \mathrm{mean} |v| / \sqrt{q_\max}`.

    LSQ, arXiv 1902.08153, section 2.1.

    Args:
        values: ``(channels, samples)``.
        grid: The grid to quantize to.

    Returns:
        ``(channels,)``, positive.
    """
    return _positive(2 * values.abs().mean(dim=1) / grid.qmax**0.5)


def recomputed_scale(values: Tensor, grid: Grid) -> Tensor:
    r"""Min-max of the published code: :math:`2 \max |v| / (2^b - 1)` for a grid of 2^b codes.

    Half a step smaller a range than :func:`minmax_scale` covers: the largest value may saturate by
    half a step.

    Args:
        values: ``(channels, samples)``.
        grid: The grid to quantize to.

    Returns:
        ``(channels,)``, positive.
    """
    return _positive(2 * values.abs().amax(dim=1) / (grid.qmax - grid.qmin))


def search_scale(values: Tensor, grid: Grid, method: RangeMethod, *, percentile: float) -> Tensor:
    """Choose scales by the given method; arguments and result as of the function it names."""
    match method:
        case RangeMethod.MINMAX:
            return minmax_scale(values, grid)
        case RangeMethod.PERCENTILE:
            return percentile_scale(values, grid, percentile=percentile)
        case RangeMethod.MSE:
            return mse_scale(values, grid)
        case RangeMethod.LSQ:
            return lsq_scale(values, grid)


def _covering_scale(low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    scale = high / grid.qmax
    if grid.is_signed:
        scale = torch.maximum(scale, low / grid.qmin)
    return _positive(scale)


def _positive(scale: Tensor) -> Tensor:
    # A channel of zeros has no range: any scale reproduces it, and one is never subnormal.
    return torch.where(scale > 0, scale.clamp_min(SMALLEST_SCALE), torch.ones_like(scale))


def _interpolated(ordered: Tensor, quantile: float) -> Tensor:
    position = quantile * (ordered.shape[1] - 1)
    below = int(position)
    above = min(below + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], position - below)
