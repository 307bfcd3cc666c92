"""Recorded answers of the torch models, for devices that have no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mimiq_runtime.errors import RunDirectoryError
from mimiq_runtime.run_images import check_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["REFERENCE_IMAGES", "RecordedReference", "read_reference", "reference_path"]

REFERENCE_IMAGES = 32
"""At most this many images are recorded with an export."""


@dataclass(frozen=True, eq=False)
class RecordedReference:
    """What the torch models answered when the run was exported.

    Attributes:
        images: uint8 pixels (N, C, H, W) of the run's own calibration images.
        full_precision: Logits (N, classes) of the full-precision model.
        fake_quantized: Logits (N, classes) of the quantized model in torch, with products in
            integers.
    """

    images: NDArray[np.uint8]
    full_precision: NDArray[np.float32]
    fake_quantized: NDArray[np.float32]


def reference_path(target: str) -> str:
    """Path of the recorded answers of an export inside its run."""
    return f"export/{target}/reference.safetensors"


def read_reference(run: RunDirectory, target: str) -> RecordedReference:
    """Read the recorded answers of an export.

    Raises:
        RunDirectoryError: The file is missing or damaged.
    """
    relative = reference_path(target)
    tensors = run.read_tensors(relative, made_by=f"mimiq-deploy export --target {target}")
    try:
        reference = RecordedReference(**tensors)
    except TypeError as error:
        raise RunDirectoryError(
            f"{run.path(relative)} is damaged: it holds {', '.join(sorted(tensors))[:200]}; export "
            "again."
        ) from error
    check_pixels(run, relative, reference.images)
    shape = len(reference.images), run.manifest.model.num_classes
    for logits in (reference.full_precision, reference.fake_quantized):
        if logits.dtype != np.float32 or logits.shape != shape or not np.isfinite(logits).all():
            raise RunDirectoryError(
                f"{run.path(relative)} holds logits of {logits.dtype} in the shape {logits.shape}; "
                f"expected finite ones of float32 in {shape}: export again."
            )
    return reference
