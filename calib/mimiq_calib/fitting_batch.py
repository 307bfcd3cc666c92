"""Going on with fewer images at a time where the memory of a GPU is not enough for all."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, TypeVar

import torch

from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FittingBatch", "going_back"]

R = TypeVar("R")


class FittingBatch:
    """How many images fit into the memory at a time: all, until that was once too many.

    Args:
        setting: Key of the recipe that says how many are taken, for the message when even one
            image is too many.
        make_room: Tried before fewer images are taken. Frees memory and returns what it did, for
            the warning; None where it has nothing left to free.
    """

    def __init__(self, setting: str, make_room: Callable[[], str | None] = lambda: None) -> None:
        self._setting = setting
        self._make_room = make_room
        self._limit: int | None = None

    def run(self, size: int, work: Callable[[int], R]) -> R:
        """Call ``work``; where its memory is not enough, again with half as many images at a time.

        What was found to fit is kept for further calls.

        Args:
            size: Number of images, at least one.
            work: Takes how many images to work on at a time. Each call begins anew: one that has
                failed must have left nothing behind.

        Returns:
            What ``work`` returned.

        Raises:
            InvalidInputError: The memory is not enough for one image.
        """
        while True:
            part = size if self._limit is None else min(size, self._limit)
            try:
                return work(part)
            except torch.OutOfMemoryError as error:
                remedy = self._make_room()
                if remedy is None and part == 1:
                    raise InvalidInputError(
                        "The memory of the GPU is not enough for one image at a time "
                        f"({self._setting}); free some of it, or take a larger GPU or the CPU."
                    ) from error
            # Not above: there the error holds the frames of the attempt, and they its tensors.
            if remedy is None:
                self._limit = (part + 1) // 2
                remedy = f"going on with {self._limit}"
            torch.cuda.empty_cache()
            warnings.warn(
                f"The memory of the GPU is not enough for {part} images at a time "
                f"({self._setting}): {remedy}.",
                RuntimeWarning,
                stacklevel=2,
            )

    def run_slices(self, count: int, size: int, work: Callable[[slice], R]) -> list[R]:
        """Call ``work`` for one slice of the images after another.

        Args:
            count: Number of images.
            size: Images a slice where the memory is enough, at least one.
            work: Takes a slice of the images. One that was too large is begun anew as a smaller
                one: the failed call must have left nothing behind.

        Returns:
            What ``work`` returned for each slice.

        Raises:
            InvalidInputError: The memory is not enough for one image.
        """
        results = []
        start = 0
        while start < count:
            stop, result = self.run(min(size, count - start), _from(start, work))
            results.append(result)
            start = stop
        return results


def _from(start: int, work: Callable[[slice], R]) -> Callable[[int], tuple[int, R]]:
    """Work on so many images from a place on; gives where they end, too."""
    return lambda size: (start + size, work(slice(start, start + size)))


@contextlib.contextmanager
def going_back(advance: Callable[[int, str], None]) -> Iterator[Callable[[int, str], None]]:
    """Let a progress bar go back when the memory was not enough for what it had counted.

    Args:
        advance: Called with the number of steps done and a note.

    Yields:
        To be called in its place within the block.
    """
    done = 0

    def count(steps: int, note: str) -> None:
        nonlocal done
        done += steps
        advance(steps, note)

    try:
        yield count
    except torch.OutOfMemoryError:
        advance(-done, "")
        raise
