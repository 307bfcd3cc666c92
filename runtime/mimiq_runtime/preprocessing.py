"""From a picture to the model's input, and back: what timm's evaluation transform does, in numpy.

Equal to ``timm.data.create_transform(**config, is_training=False)`` on pictures of Pillow; the
rules of rounding are torchvision's. tests/runtime/test_preprocessing.py compares the two.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mimiq_runtime.errors import ImageError, InvalidInputError
from mimiq_runtime.images import MAX_PIXELS, image_mode, load_image
from mimiq_runtime.input_form import InputForm

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mimiq_runtime.manifest import Preprocessing

__all__ = [
    "CROP_MODES",
    "FILTERS",
    "denormalise",
    "model_input",
    "normalise",
    "preprocess_files",
    "preprocess_image",
    "read_pixels",
]

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CROP_MODES = ("center", "squash")
"""The values of two fields of :class:`mimiq_runtime.manifest.Preprocessing`."""


def preprocess_image(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Resize, crop and normalise one picture.

    Args:
        image: Mode ``L`` for a model with one channel, ``RGB`` for three, as
            :func:`~mimiq_runtime.images.load_image` returns it.
        preprocessing: The model's data configuration.

    Returns:
        Array (C, H, W): ``(pixel / 255 - mean) / std``.

    Raises:
        InvalidInputError: The picture has another mode.
        ImageError: The picture is so narrow that its resized form would be too large.
    """
    pixels = _resize_and_crop(image, preprocessing)
    images = normalise(pixels[np.newaxis], preprocessing)
    return images.reshape(preprocessing.input_size)


def preprocess_files(paths: Sequence[Path], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Read pictures from files and preprocess them as :func:`preprocess_image` does.

    Returns:
        Array (N, C, H, W), in the order of ``paths``.

    Raises:
        ImageError: A file is missing or no usable picture.
    """
    return normalise(read_pixels(paths, preprocessing), preprocessing)


def read_pixels(paths: Sequence[Path], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Read pictures from files, resize and crop them; all of the preprocessing but the last step.

    Returns:
        Array (N, C, H, W), in the order of ``paths``.

    Raises:
        ImageError: A file is missing or no usable picture.
    """
    pixels = np.empty((len(paths), *preprocessing.input_size), dtype=np.uint8)
    for index, path in enumerate(paths):
        image = load_image(path, channels=preprocessing.input_size[0])
        try:
            pixels[index] = _resize_and_crop(image, preprocessing)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
    return pixels


def model_input(
    pixels: NDArray[np.uint8], preprocessing: Preprocessing, form: InputForm
) -> NDArray[Any]:
    """Pixels in the form that a model takes.

    Args:
        pixels: Array (N, C, H, W) at the model's size.
        preprocessing: The model's data configuration.
        form: What the session's ``info.takes`` says.

    Returns:
        For ``normalised`` float32 (N, C, H, W), see :func:`normalise`; for ``pixels`` the same
        pixels as uint8 (N, H, W, C).

    Raises:
        InvalidInputError: The pixels have another type, or another number of channels.
    """
    if form is InputForm.NORMALISED:
        return normalise(pixels, preprocessing)
    _check_pixels(pixels, preprocessing)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def normalise(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """``(pixel / 255 - mean) / std``, channel by channel, in single precision.

    Args:
        pixels: Array (N, C, H, W).
        preprocessing: Gives the mean and the standard deviation of each channel.

    Returns:
        Array (N, C, H, W).

    Raises:
        InvalidInputError: The pixels have another type, or another number of channels.
    """
    _check_pixels(pixels, preprocessing)
    mean, std = _statistics(pixels.shape, preprocessing)
    values = pixels.astype(np.float32)
    values /= np.float32(255)
    values -= mean
    values /= std
    return values


def denormalise(images: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The pixels that a model's input stands for: ``round(255 (x std + mean))``, cut to 0..255.

    Args:
        images: Array (N, C, H, W), normalised.
        preprocessing: Gives the mean and the standard deviation of each channel.

    Returns:
        Array (N, H, W, C), as pictures are written.

    Raises:
        InvalidInputError: Another number of channels, or values that are not a number.
    """
    mean, std = _statistics(images.shape, preprocessing)
    values = images * std + mean
    if np.isnan(values).any():
        raise InvalidInputError("Images must not hold NaN; the model that made them diverged.")
    pixels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def _check_pixels(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> None:
    if pixels.dtype != np.uint8:
        raise InvalidInputError(f"Pixels are uint8, 0 to 255; got {pixels.dtype}.")
    _check_channels(pixels.shape, preprocessing)


def _check_channels(shape: tuple[int, ...], preprocessing: Preprocessing) -> None:
    channels = preprocessing.input_size[0]
    if len(shape) != 4 or shape[1] != channels:
        raise InvalidInputError(f"Images have the shape (N, {channels}, H, W); got {shape}.")


def _statistics(
    shape: tuple[int, ...], preprocessing: Preprocessing
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    _check_channels(shape, preprocessing)
    channels = preprocessing.input_size[0]
    if not len(preprocessing.mean) == len(preprocessing.std) == channels:
        raise InvalidInputError(
            f"Preprocessing needs one mean and one std for each of {channels} channels; got "
            f"{len(preprocessing.mean)} and {len(preprocessing.std)}."
        )
    if min(preprocessing.std) <= 0:
        raise InvalidInputError(f"Each std must be positive; got {list(preprocessing.std)}.")
    mean = np.asarray(preprocessing.mean, dtype=np.float32).reshape(1, -1, 1, 1)
    std = np.asarray(preprocessing.std, dtype=np.float32).reshape(1, -1, 1, 1)
    return mean, std


def _resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    channels, height, width = preprocessing.input_size
    if image.mode != image_mode(channels):
        raise InvalidInputError(
            f"A model with {channels} channels takes pictures of mode {image_mode(channels)}; "
            f"got {image.mode}: read them with load_image."
        )
    size = _resized_size(image.size, preprocessing)
    if math.prod(size) > MAX_PIXELS:
        raise ImageError(
            f"A picture of {image.width} x {image.height} pixels is too narrow to be resized "
            f"to {size[0]} x {size[1]} (at most {MAX_PIXELS:,} pixels); crop it first."
        )
    resized = image.resize(size, FILTERS[preprocessing.interpolation])
    # What the crop box holds beyond the picture becomes black, as torchvision pads it.
    left, top = _crop_start(size[0], width), _crop_start(size[1], height)
    pixels = np.asarray(resized.crop((left, top, left + width, top + height)))
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _resized_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Width and height after the resize, before the crop."""
    width, height = size
    _, crop_height, crop_width = preprocessing.input_size
    target_height = math.floor(crop_height / preprocessing.crop_pct)
    target_width = math.floor(crop_width / preprocessing.crop_pct)
    if preprocessing.crop_mode == "squash":
        return target_width, target_height
    if target_height == target_width:
        # torchvision's Resize with one number: the longer side is cut to an integer.
        if width <= height:
            return target_width, int(target_width * height / width)
        return int(target_height * width / height), target_height
    # timm's ResizeKeepRatio: both sides are rounded.
    ratio = min(height / target_height, width / target_width)
    return round(width / ratio), round(height / ratio)


def _crop_start(size: int, crop: int) -> int:
    # torchvision pads by the floor of half of what is missing, and crops at the rounded half of
    # what is too much (halves to even, as Python rounds).
    return -((crop - size) // 2) if crop > size else round((size - crop) / 2)
