"""The images of a run: shards of safetensors, each held against what its model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mimiq_runtime.errors import RunDirectoryError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["check_pixels", "read_shard", "shards_of"]

_FIRST = "images/shard-00000.safetensors"


def shards_of(run: RunDirectory) -> list[str]:
    """Paths of the finished shards inside the run, in their order; the first where none is."""
    names = sorted(name for name in run.manifest.files if name.startswith("images/shard-"))
    return names or [_FIRST]


def read_shard(run: RunDirectory, relative: str) -> NDArray[np.uint8]:
    """The images of a shard, uint8 (N, C, H, W) of the size that the model takes.

    Raises:
        RunDirectoryError: The shard is not there or damaged, or holds something else.
    """
    tensors = run.read_tensors(relative, made_by="mimiq-deploy calibrate")
    if "images" not in tensors:
        raise RunDirectoryError(
            f"{run.path(relative)} has no tensor images; get a good copy of the run."
        )
    check_pixels(run, relative, tensors["images"])
    return tensors["images"]


def check_pixels(run: RunDirectory, relative: str, images: NDArray[np.generic]) -> None:
    """Raise :class:`RunDirectoryError` unless these are images that the model of the run takes.

    Args:
        run: The run.
        relative: The file that they are from, for the message.
        images: Expected as uint8 (N, C, H, W), at least one.
    """
    size = run.manifest.preprocessing.input_size
    if images.dtype != np.uint8 or images.shape[1:] != size or not len(images):
        raise RunDirectoryError(
            f"{run.path(relative)} holds images of {images.dtype} in the shape {images.shape}, and "
            f"the model takes (N, {', '.join(map(str, size))}) of uint8; get a good copy of the "
            "run."
        )
