"""The images that implementations are compared on: photographs, the run's own, or noise."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from mimiq_runtime.dataset import open_pictures
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.preprocessing import read_pixels
from mimiq_runtime.run_images import read_shard, shards_of
from mimiq_runtime.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["ComparisonData", "DataKind", "DataRecord", "open_data"]

NOISE_IMAGES = 32
"""How many images of noise, unless a limit says otherwise."""


class DataKind(StrEnum):
    """Where the images come from.

    ``photographs``: a folder of pictures. ``synthetic``: the images that the run was calibrated
    with, and those it held out. ``noise``: pixels drawn at random from the run's seed.
    """

    PHOTOGRAPHS = "photographs"
    SYNTHETIC = "synthetic"
    NOISE = "noise"


class DataRecord(Schema):
    """What was compared on.

    Attributes:
        kind: Where the images came from.
        origin: The folder; the source of the run's images; or the seed of the noise.
        n: Number of images.
        labelled: Whether their classes are known, so that there is an accuracy.
    """

    kind: DataKind
    origin: str
    n: int
    labelled: bool


@dataclass(frozen=True, eq=False)
class ComparisonData:
    """Images of one kind, read a batch at a time.

    Attributes:
        record: What they are.
        labels: Class of each image (n,), or None where they are not known.
        read: Gives the uint8 pixels (m, C, H, W) of the images ``start`` to ``stop``.
        paths: The file of each photograph; empty for other images.
    """

    record: DataRecord
    labels: NDArray[np.int64] | None
    read: Callable[[int, int], NDArray[np.uint8]]
    paths: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return self.record.n

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """Pixels (m, C, H, W), ``size`` images at a time, in their order.

        Raises:
            ImageError: While iterating: a picture cannot be read.
        """
        for start in range(0, len(self), size):
            yield self.read(start, min(start + size, len(self)))


def open_data(run: RunDirectory, source: Path | DataKind, *, limit: int | None) -> ComparisonData:
    """Find the images; pictures in files are decoded later.

    Args:
        run: Gives the form of the images, and for all but photographs the images themselves.
        source: A folder of pictures, with or without labels, or what else there is.
        limit: At most this many images. Photographs are taken evenly spaced over all of them.

    Raises:
        InvalidInputError: The folder cannot be used, or the limit is less than 1.
        RunDirectoryError: The run has no images.
    """
    if limit is not None and limit < 1:
        raise InvalidInputError(f"At least one image is needed to compare; got a limit of {limit}.")
    if source is DataKind.SYNTHETIC:
        return _own_images(run, limit)
    if source is DataKind.NOISE:
        return _noise(run, NOISE_IMAGES if limit is None else limit)
    if isinstance(source, DataKind):
        raise InvalidInputError("Photographs are in a folder, and none is given; name it.")
    return _photographs(run, source, limit)


def _photographs(run: RunDirectory, folder: Path, limit: int | None) -> ComparisonData:
    pictures = open_pictures(folder, num_classes=run.manifest.model.num_classes, limit=limit)
    preprocessing = run.manifest.preprocessing
    labels = pictures.labels
    return ComparisonData(
        DataRecord(
            kind=DataKind.PHOTOGRAPHS,
            origin=str(folder),
            n=len(pictures.paths),
            labelled=labels is not None,
        ),
        labels,
        lambda start, stop: read_pixels(pictures.paths[start:stop], preprocessing),
        pictures.paths,
    )


def _own_images(run: RunDirectory, limit: int | None) -> ComparisonData:
    """The run's images, from the last to the first: those that were held out come last."""
    read = [read_shard(run, name) for name in shards_of(run)]
    pixels = np.ascontiguousarray(np.concatenate(read)[::-1][:limit])
    origin = str(run.manifest.recipe.get("synthesis", {}).get("source", "unknown"))
    return _in_memory(DataKind.SYNTHETIC, origin, pixels)


def _noise(run: RunDirectory, n: int) -> ComparisonData:
    """Every pixel of every channel uniform in 0..255."""
    seed = run.manifest.seed
    shape = (n, *run.manifest.preprocessing.input_size)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return _in_memory(DataKind.NOISE, f"seed {seed}", pixels)


def _in_memory(kind: DataKind, origin: str, pixels: NDArray[np.uint8]) -> ComparisonData:
    record = DataRecord(kind=kind, origin=origin, n=len(pixels), labelled=False)
    return ComparisonData(record, None, lambda start, stop: pixels[start:stop])
