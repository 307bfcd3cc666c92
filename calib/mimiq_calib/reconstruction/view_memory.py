"""The memory of a reconstruction: where the values of all views are kept, and how many fit."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mimiq_calib.fitting_batch import FittingBatch

if TYPE_CHECKING:
    from mimiq_calib.reconstruction.chain import Link

__all__ = ["ViewMemory", "ViewValues"]

MEMORY_KEY = "reconstruction.batch_size"
"""What decides how much memory is needed, beside the number of views."""

HOST = torch.device("cpu")


class ViewMemory:
    """Keeps values on the device, until its memory was once too little; from then on on the host.

    That comes before fewer views at a time, because it changes no bit of the result.

    Args:
        device: Where values are made and used.

    Attributes:
        device: The same.
        without_gradients: How many views fit into a pass without gradients.
        with_gradients: How many fit into one with them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.home = device
        self.without_gradients = self.fitting()
        self.with_gradients = self.fitting()
        self._kept = weakref.WeakSet[ViewValues]()

    def fitting(self) -> FittingBatch:
        """For work of another kind: how many views fit, as far as it knows."""
        return FittingBatch(MEMORY_KEY, self._move_to_host)

    def keep(self, count: int) -> ViewValues:
        """Room for the values of so many views."""
        values = ViewValues(self, count)
        self._kept.add(values)
        return values

    @torch.no_grad()
    def outputs(self, link: Link, inputs: ViewValues, batch_size: int) -> ViewValues:
        """What a link gives for all views, in single precision.

        Raises:
            InvalidInputError: The memory is not enough for one view.
        """
        outputs = self.keep(len(inputs))

        def compute(views: slice) -> None:
            outputs[views] = link(inputs[views])

        self.without_gradients.run_slices(len(inputs), batch_size, compute)
        return outputs

    def _move_to_host(self) -> str | None:
        if self.home == HOST:
            return None
        self.home = HOST
        for values in self._kept:
            values.move()
        return "keeping the values of all views in the memory of the host from here on"


class ViewValues:
    """Values of all views at one place of the chain; the first ones that come tell their shape.

    Args:
        memory: Knows where they are kept.
        count: Number of views.
    """

    def __init__(self, memory: ViewMemory, count: int) -> None:
        self._memory = memory
        self._count = count
        self._values: Tensor | None = None

    def __len__(self) -> int:
        """Number of views."""
        return self._count

    def __getitem__(self, views: slice | Tensor) -> Tensor:
        """The values of some views, on the device, ``(views, ...)``."""
        assert self._values is not None  # whoever reads has written
        return self._values[views].to(self._memory.device)

    def __setitem__(self, views: slice, values: Tensor) -> None:
        """Keep the values of some views."""
        if self._values is None:
            shape = (self._count, *values.shape[1:])
            self._values = torch.empty(shape, dtype=values.dtype, device=self._memory.home)
        self._values[views] = values

    def move(self) -> None:
        """Go where the memory now keeps values."""
        if self._values is not None:
            self._values = self._values.to(self._memory.home)
