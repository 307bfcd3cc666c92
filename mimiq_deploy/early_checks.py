"""What can be told of a request without weights: before a download, and before a study begins."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn

    from mimiq_calib.recipe import Recipe
    from mimiq_deploy.calibration import CalibrationRequest

__all__ = ["check_model", "check_place", "check_runs_to_be"]


def check_place(output: Path, *, resume: bool) -> None:
    """Refuse a place where no run can be started, and none resumed.

    Raises:
        RunDirectoryError: There is something else.
    """
    if not resume or not (output / RunDirectory.MANIFEST).exists():
        RunDirectory.check_new(output)


def check_model(model: nn.Module, request: CalibrationRequest, output: Path) -> None:
    """Refuse a model that cannot be calibrated as requested, whatever its weights are.

    Args:
        model: As timm made it; its weights are not looked at.
        request: What is asked for.
        output: The run directory; a new one needs its pictures, where its images are pictures.

    Raises:
        UnsupportedModelError: It holds something whose conversion is not known.
        InvalidInputError: Labels, preprocessing or layers' bits do not fit it, or the folder of
            pictures cannot be used.
    """
    from mimiq_calib.conversion.convert import check_layer_bits, expose_attention
    from mimiq_calib.conversion.support import check_support
    from mimiq_calib.model_loading import preprocessing_of
    from mimiq_calib.recipe import ImageSource
    from mimiq_calib.synthesis.sources import list_pictures
    from mimiq_runtime.images import image_mode

    check_support(model)
    recipe = request.recipe
    if recipe.quantization.layer_bits:
        check_layer_bits(expose_attention(model), recipe.quantization)
    classes = int(getattr(model, "num_classes", 0))
    if request.labels is not None and len(request.labels) != classes:
        raise InvalidInputError(
            f"The model has {classes} classes, and {len(request.labels)} labels were given."
        )
    preprocessing = preprocessing_of(model, request.preprocessing)
    new = not (output / RunDirectory.MANIFEST).exists()
    if new and recipe.synthesis.source is ImageSource.FOLDER:
        image_mode(preprocessing.input_size[0])
        list_pictures(recipe.synthesis, recipe.synthesis.total)


def check_runs_to_be(
    request: CalibrationRequest,
    runs: Iterable[tuple[Path, Recipe]],
    *,
    pictures: Path | None = None,
    limit: int | None = None,
) -> None:
    """Check all runs of one model, and the pictures to measure them on, before the first is begun.

    Args:
        request: Model and preprocessing; its own recipe is not used.
        runs: Directory and recipe of each.
        pictures: Folder of labelled pictures, if there is one.
        limit: At most this many of the pictures.

    Raises:
        CheckpointError: The weights cannot be read.
        DatasetError: The folder of labelled pictures cannot be used.
        InvalidInputError: As for :func:`check_model` and :func:`check_place`.
    """
    from mimiq_deploy.calibration import create_requested_model
    from mimiq_runtime.dataset import open_labelled_images

    model, _ = create_requested_model(request)
    for output, recipe in runs:
        check_place(output, resume=True)
        check_model(model, replace(request, recipe=recipe), output)
    if pictures is not None:
        classes = int(getattr(model, "num_classes", 0))
        open_labelled_images(pictures, num_classes=max(classes, 1), limit=limit)
