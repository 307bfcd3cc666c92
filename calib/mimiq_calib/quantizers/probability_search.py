"""Choosing the scale of attention probabilities by the error of what they weigh.

Most probabilities are tiny and a few are near one. Covering the largest, or the least squared
error of the probabilities themselves, sends whole rows of diffuse attention to zero. What counts
is the product with the values, so that is what is compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mimiq_calib.quantizers.learned_step import quantize_to_codes

if TYPE_CHECKING:
    from mimiq_runtime.grid import Grid

__all__ = ["ProbabilityScaleSearch"]

CANDIDATES = tuple(2.0 ** (-step / 3) for step in range(16))
"""Largest probability that does not saturate, from 1 down to 1/32 in thirds of an octave."""


class ProbabilityScaleSearch:
    """Squared error of the weighted values for each candidate scale, over many batches.

    Args:
        grid: The grid of the probabilities.
        queries_per_batch: How many query positions of one batch to look at, evenly spaced.
    """

    def __init__(self, grid: Grid, queries_per_batch: int = 16) -> None:
        self._grid = grid
        self._queries = queries_per_batch
        self._errors = torch.zeros(len(CANDIDATES), dtype=torch.float64)

    def update(self, probabilities: Tensor, values: Tensor) -> None:
        """Take in one batch.

        Args:
            probabilities: ``(batch, heads, queries, keys)``, not quantized.
            values: ``(batch, heads, keys, head_dim)``, not quantized.
        """
        stride = max(1, probabilities.shape[2] // self._queries)
        rows = probabilities[:, :, ::stride].float()
        for index, reach in enumerate(CANDIDATES):
            scale = torch.tensor(reach / self._grid.qmax, device=rows.device)
            error = quantize_to_codes(rows, scale, self._grid).mul_(scale).sub_(rows)
            self._errors[index] += float((error @ values.float()).square().sum())

    def scale(self) -> float:
        """The candidate with the least error, positive."""
        reach: float = CANDIDATES[int(self._errors.argmin())]
        return reach / self._grid.qmax
