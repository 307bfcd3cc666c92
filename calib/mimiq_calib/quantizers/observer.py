"""Collecting the values of an activation over many batches, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ValueSample"]


class ValueSample:
    """A sample of the values that went through one place of the model.

    Every batch gives the same number of values, evenly spaced over the tensor, beside its exact
    smallest and largest value; the range is thus never underestimated, whatever the sample.

    Args:
        per_batch: How many values to keep from one batch.
    """

    def __init__(self, per_batch: int = 32768) -> None:
        self._per_batch = per_batch
        self._parts: list[Tensor] = []

    def update(self, x: Tensor) -> None:
        """Take the sample of one batch; ``x`` may have any shape."""
        flat = x.detach().float().flatten()
        stride = max(1, flat.numel() // self._per_batch)
        extremes = torch.stack([flat.min(), flat.max()])
        self._parts.append(torch.cat([flat[::stride], extremes]))

    def values(self) -> Tensor:
        """All values of the sample, as ``(1, samples)``.

        Raises:
            RuntimeError: No batch was seen.
        """
        if not self._parts:
            raise RuntimeError("An observer has seen no batch.")
        return torch.cat(self._parts)[None]
