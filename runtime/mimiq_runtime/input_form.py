"""In which form a model takes its images, and where an ONNX file says so."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_runtime.errors import OnnxModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["INPUT_METADATA", "InputForm", "input_form", "random_images"]

INPUT_METADATA = "mimiq_deploy.input"
"""Key of the ONNX file's metadata property that names its :class:`InputForm`."""


class InputForm(StrEnum):
    """What a session's ``run`` is given.

    ``normalised``: float32 (N, C, H, W), as :func:`~mimiq_runtime.preprocessing.normalise` makes
    it. ``pixels``: uint8 (N, H, W, C), 0 to 255, as pictures lie in memory; the model normalises.
    """

    NORMALISED = "normalised"
    PIXELS = "pixels"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of an element."""
        return np.dtype(np.uint8 if self is InputForm.PIXELS else np.float32)

    @property
    def axes(self) -> str:
        """The order of the axes, for messages."""
        return "(N, H, W, C)" if self is InputForm.PIXELS else "(N, C, H, W)"


def input_form(metadata: Mapping[str, str]) -> InputForm:
    """The form that a model's metadata names; ``normalised`` where it names none.

    Raises:
        OnnxModelError: It names a form that this version does not know.
    """
    named = metadata.get(INPUT_METADATA, InputForm.NORMALISED)
    try:
        return InputForm(named)
    except ValueError as error:
        raise OnnxModelError(
            f"Expected {INPUT_METADATA} to be one of {', '.join(InputForm)}, got {named!r}; "
            "update mimiq-deploy or export the model again."
        ) from error


def random_images(
    form: InputForm, count: int, size: tuple[int, int, int], *, seed: int
) -> NDArray[Any]:
    """Images for measurements: never zeros, which take short cuts and no memory.

    Args:
        form: The form that the model takes; each seed has the same pictures in both.
        count: Number of images N.
        size: Channels, height and width.
        seed: Seed of the standard normal values, and of the pixels made from them.
    """
    shape = (count, *size)
    normalised = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if form is InputForm.NORMALISED:
        return normalised
    pixels = np.clip(np.rint(normalised * 64 + 128), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
