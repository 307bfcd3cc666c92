"""Choosing how many codes of a grid are negative.

GELU's output begins at -0.17 and reaches far above: half of a symmetric grid would stay empty.
The grid -1..14 has the same number of codes, lies within the same int8 container with zero point
0, and wastes none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mimiq_calib.quantizers.learned_step import quantize_to_codes
from mimiq_calib.quantizers.quantizer import Skew
from mimiq_calib.quantizers.range_search import RangeMethod, mse_scale, search_scale
from mimiq_runtime.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["choose_grid"]

SHARES = 32
"""At most this many numbers of negative codes are compared."""

WITHIN_CONTAINER, BEYOND_CONTAINER = 0.95, 0.6
"""A skewed grid is chosen only if it lowers the error to less than this share."""

SAMPLES, COARSE = 8192, 24
"""Values and scales to compare grids by; the scale of the chosen grid is searched in full."""


def choose_grid(
    values: Tensor,
    bits: int,
    method: RangeMethod,
    *,
    percentile: float,
    standard: Grid,
    skew: Skew,
) -> Grid:
    """The grid with the least mean squared error, each with the scale that the method gives it.

    Args:
        values: ``(1, samples)``.
        bits: Width of the grid.
        method: How the scale of each grid is chosen.
        percentile: The percentile for ranges chosen by it, in percent.
        standard: The grid without skew; it wins where no other is clearly better.
        skew: Which other grids are allowed.
    """
    values = _thinned(values)
    least = _error(values, standard, method, percentile)
    best = standard
    for candidate in _candidates(bits, skew):
        error = _error(values, candidate, method, percentile)
        # What costs the engine an addition must be worth it, and a tie is no reason to differ.
        worth = BEYOND_CONTAINER if candidate.offset else WITHIN_CONTAINER
        if error / worth < least:
            best, least = candidate, error / worth
    return best


def _thinned(values: Tensor) -> Tensor:
    """Enough values to compare grids by, their extremes among them."""
    stride = max(1, values.shape[1] // SAMPLES)
    extremes = torch.stack(values.aminmax(dim=1), dim=1)
    return torch.cat([values[:, ::stride], extremes], dim=1)


def _candidates(bits: int, skew: Skew) -> list[Grid]:
    if skew is Skew.NONE:
        return []
    codes = 2**bits
    step = max(1, codes // SHARES)
    grids = [Grid.skewed(bits, negative) for negative in range(0, codes - 1, step)]
    return [grid for grid in grids if skew is Skew.ANY or grid.offset == 0]


def _error(values: Tensor, grid: Grid, method: RangeMethod, percentile: float) -> float:
    if method is RangeMethod.MSE:
        scale = mse_scale(values, grid, candidates=COARSE)[:, None]
    else:
        scale = search_scale(values, grid, method, percentile=percentile)[:, None]
    return float((quantize_to_codes(values, scale, grid) * scale - values).square().mean())
