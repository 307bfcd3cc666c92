"""Where calibration images come from; all sources give the same thing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from mimiq_calib.pixels import PixelScale
from mimiq_calib.recipe import ImageSource, SynthesisSettings
from mimiq_calib.synthesis.mimiq import synthesise_batch
from mimiq_calib.synthesis.optimisation import SynthesisedBatch
from mimiq_calib.synthesis.patch_similarity import synthesise_by_patch_similarity
from mimiq_runtime.errors import DatasetError
from mimiq_runtime.images import IMAGE_SUFFIXES
from mimiq_runtime.preprocessing import preprocess_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from mimiq_calib.fitting_batch import FittingBatch
    from mimiq_runtime.manifest import Preprocessing

__all__ = ["ShardRequest", "list_pictures", "make_shard", "steps_of_shard"]


OPTIMISED = {ImageSource.MIMIQ, ImageSource.PATCH_SIMILARITY}
"""The sources whose images are made from the weights, step by step."""


@dataclass(frozen=True)
class ShardRequest:
    """One shard to make.

    Attributes:
        first: Number of its first image in the run.
        size: How many images.
        generator: Source of all its randomness.
    """

    first: int
    size: int
    generator: torch.Generator


def steps_of_shard(settings: SynthesisSettings) -> int:
    """How many steps of progress one shard takes."""
    return settings.iterations if settings.source in OPTIMISED else 1


def make_shard(
    teacher: nn.Module,
    settings: SynthesisSettings,
    preprocessing: Preprocessing,
    request: ShardRequest,
    *,
    num_classes: int,
    device: torch.device,
    fit: FittingBatch | None = None,
    advance: Callable[[int, str], None],
) -> SynthesisedBatch:
    """Make one shard of images from the source that the settings name.

    Args:
        teacher: Full-precision model with exposed attention; noise and pictures ignore it.
        settings: The source and how it works.
        preprocessing: Size of the input and the range of real pixels.
        request: Which images.
        num_classes: Number of labels to draw from.
        device: Where the teacher is.
        fit: How many images the memory was enough for in other shards; None where nobody knows.
        advance: Called with the number of steps done and a note.

    Returns:
        The images; their labels are -1 where the source has none.

    Raises:
        DatasetError: The source is a folder that does not have enough pictures.
        InvalidInputError: The synthesis diverged.
    """
    match settings.source:
        case ImageSource.MIMIQ:
            synthesise = synthesise_batch
        case ImageSource.PATCH_SIMILARITY:
            synthesise = synthesise_by_patch_similarity
        case ImageSource.NOISE:
            advance(1, "")
            return _noise(preprocessing, request)
        case ImageSource.FOLDER:
            batch = _pictures(settings, preprocessing, request)
            advance(1, "")
            return batch
    return synthesise(
        teacher,
        settings,
        preprocessing,
        batch_size=request.size,
        num_classes=num_classes,
        generator=request.generator,
        device=device,
        fit=fit,
        advance=advance,
    )


def _noise(preprocessing: Preprocessing, request: ShardRequest) -> SynthesisedBatch:
    """Gaussian noise in normalised space, as the baselines of the literature use it."""
    pixel_scale = PixelScale(preprocessing, torch.device("cpu"))
    shape = (request.size, *preprocessing.input_size)
    pixels = pixel_scale.to_pixels(torch.randn(shape, generator=request.generator))
    return SynthesisedBatch(pixels, _no_labels(request.size), [])


def list_pictures(settings: SynthesisSettings, count: int) -> list[Path]:
    """The first pictures of the source ``folder``, in an order by name.

    Args:
        settings: With the folder.
        count: How many.

    Raises:
        DatasetError: The folder cannot be read, or has fewer.
    """
    folder = Path(settings.folder or "")
    if not folder.is_dir():
        raise DatasetError(
            f"Expected a folder of pictures, got {folder}, which is "
            f"{'a file' if folder.exists() else 'not there'}; check the path."
        )
    try:
        found = sorted(path for path in folder.rglob("*") if _is_picture(path))
    except OSError as error:
        raise DatasetError(f"The folder of pictures {folder} cannot be read: {error}.") from error
    if len(found) < count:
        raise DatasetError(
            f"num_images and held_out of synthesis ask for at least {count} pictures, and the "
            f"folder {folder} has {len(found)}: lower them or name another folder."
        )
    return found[:count]


def _pictures(
    settings: SynthesisSettings, preprocessing: Preprocessing, request: ShardRequest
) -> SynthesisedBatch:
    """Real pictures, the yardstick: the same ones for every recipe."""
    chosen = list_pictures(settings, request.first + request.size)[request.first :]
    images = torch.from_numpy(preprocess_files(chosen, preprocessing))
    pixels = PixelScale(preprocessing, torch.device("cpu")).to_pixels(images)
    return SynthesisedBatch(pixels, _no_labels(request.size), [])


def _is_picture(path: Path) -> bool:
    # Hidden files are no pictures, whatever their ending: macOS writes ._photo.jpg.
    hidden = path.name.startswith(".")
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file()


def _no_labels(size: int) -> torch.Tensor:
    return torch.full((size,), -1, dtype=torch.int64)
