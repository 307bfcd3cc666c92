"""What every session checks: the model's signature, the images it is given, the logits it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_runtime.errors import EngineError, InvalidInputError, OnnxModelError
from mimiq_runtime.input_form import InputForm
from mimiq_runtime.onnx_external_data import check_external_data

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["check_images", "check_logits", "check_onnx_file", "first_line"]


def check_onnx_file(model: Path) -> None:
    """Raise :class:`OnnxModelError` unless there is a file that takes nothing from elsewhere."""
    if not model.is_file():
        raise OnnxModelError(f"Expected an ONNX file, and {model} is not one; check the path.")
    check_external_data(model)


def check_images(
    images: NDArray[Any],
    shape: Sequence[int | None],
    takes: InputForm = InputForm.NORMALISED,
) -> None:
    """Raise :class:`InvalidInputError` unless a batch fits the model's input.

    Args:
        images: The batch; must have the type and the axes of the form, and not be empty.
        shape: The model's input, its axes as the form has them; None where any size goes.
        takes: The form that the model takes.
    """
    fits = (
        images.dtype == takes.dtype
        and images.ndim == 4
        and len(images) > 0
        and all(size in (None, got) for size, got in zip(shape, images.shape, strict=True))
    )
    if not fits:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise InvalidInputError(
            f"Expected {takes.dtype} images of shape ({expected}), at least one, got "
            f"{images.dtype} of shape {images.shape}; preprocess them for this model."
        )


def check_logits(logits: NDArray[Any], count: int, model: str) -> NDArray[np.float32]:
    """Give the logits (N, classes) as float32, or raise :class:`EngineError` for another shape.

    Args:
        logits: What the engine gave.
        count: The number of images.
        model: Path of the model, for the message.
    """
    if logits.ndim != 2 or len(logits) != count:
        raise EngineError(
            f"Expected logits of shape ({count}, classes) from {model}, "
            f"got {logits.shape}; export the model with a free batch size."
        )
    return np.asarray(logits, dtype=np.float32)


def first_line(error: Exception) -> str:
    """The first line of an exception's message, without the full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
