"""Watching tensors of a model over calibration images."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["ChannelStatistics", "watch_inputs"]


class ChannelStatistics:
    """Sums, extremes and a sample of a tensor's rows, by channel.

    Args:
        rows_per_batch: How many rows to keep from one batch, evenly spaced.
    """

    def __init__(self, rows_per_batch: int = 512) -> None:
        self._rows_per_batch = rows_per_batch
        self._parts: list[Tensor] = []
        self._sum: Tensor | None = None
        self._count = 0

    def update(self, x: Tensor) -> None:
        """Take in a tensor whose last axis is the channel."""
        rows = x.detach().float().flatten(end_dim=-2)
        total = rows.sum(dim=0, dtype=torch.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(rows)
        stride = max(1, len(rows) // self._rows_per_batch)
        self._parts.append(rows[::stride].clone())

    def mean(self) -> Tensor:
        """Mean of each channel over everything seen, ``(channels,)``."""
        if self._sum is None:
            raise RuntimeError("Statistics have seen no batch.")
        return (self._sum / self._count).float()

    def rows(self) -> Tensor:
        """The sampled rows, ``(rows, channels)``."""
        return torch.cat(self._parts)


@contextlib.contextmanager
def watch_inputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, ChannelStatistics]]:
    """Collect statistics of the inputs of modules while the model runs in the block.

    Args:
        modules: By name.

    Yields:
        The statistics, by the same names.
    """
    statistics = {name: ChannelStatistics() for name in modules}
    handles = [
        module.register_forward_pre_hook(
            lambda _module, inputs, name=name: statistics[name].update(inputs[0])
        )
        for name, module in modules.items()
    ]
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()
