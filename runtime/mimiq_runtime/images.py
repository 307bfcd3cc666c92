"""Reading pictures: any common file becomes 8-bit grayscale or RGB, or one clear error."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mimiq_runtime.errors import ImageError, InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "image_mode", "load_image"]

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Endings, in lower case, of the files that are taken for pictures."""

MAX_PIXELS = 64_000_000
"""A picture with more pixels is refused before it is decoded."""

LARGEST_FILE = 512 * 2**20
"""Bytes of the largest file: such a picture without compression, four channels of 16 bits."""

_AT_ONCE = 2**20
"""Samples that are scaled at once, so that the memory for it does not grow with the picture."""

# Named, so that no file can reach a plugin that starts another program, as EPS does.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_MODES = {1: "L", 3: "RGB"}


def image_mode(channels: int) -> str:
    """Pillow's mode of a picture with this many channels: ``L`` for 1, ``RGB`` for 3.

    Raises:
        InvalidInputError: Any other number of channels.
    """
    if channels not in _MODES:
        raise InvalidInputError(
            f"Pictures are read with 1 channel (grayscale) or 3 (RGB); got {channels}: "
            "this model cannot take pictures from files."
        )
    return _MODES[channels]


def load_image(path: Path, *, channels: int) -> Image.Image:
    """Read a picture, turn it upright, and convert it to 8 bits.

    The EXIF orientation is applied. Transparency is dropped, as timm and torchvision do: the
    colour that is stored under it shows. 16-bit grayscale is scaled, ``round(value / 257)``.
    Of an animation the first frame is read.

    Args:
        path: The file; its content decides the format, not its name.
        channels: 1 for grayscale (mode ``L``), 3 for colour (mode ``RGB``).

    Returns:
        The decoded picture, independent of the file.

    Raises:
        InvalidInputError: ``channels`` is neither 1 nor 3.
        ImageError: The file is missing, no picture, damaged, too large, or of a depth whose
            range is not known.
    """
    mode = image_mode(channels)
    # Opening a pipe would wait for ever for somebody to write into it.
    if path.exists() and not path.is_file():
        raise ImageError(f"{path} is not a file; give a picture.")
    try:
        # Some decoders read the file as a whole, before they tell how large the picture is.
        if path.stat().st_size > LARGEST_FILE:
            raise ImageError(
                f"{path} is too large: at most {LARGEST_FILE // 2**20} MiB; make it smaller."
            )
        # Pillow warns of large pictures and of odd metadata; the limit here is an error instead.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                _check_size(path, image)
                # In place: a copy would take as much memory again.
                ImageOps.exif_transpose(image, in_place=True)
                return _to_8_bits(path, image, image.format).convert(mode)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"There is no picture {path}; check the path.") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path} is not a picture of a known format ({', '.join(_FORMATS)}); convert it to PNG."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(path, "far more")) from error
    # Decoders let through whatever a damaged file makes of them: struct.error, SyntaxError, ...
    except Exception as error:
        raise ImageError(
            f"{path} cannot be decoded as a picture ({_reason(error)}); replace the file."
        ) from error


def _check_size(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(_too_large(path, f"{image.width} x {image.height} pixels"))


def _too_large(path: Path, got: str) -> str:
    return f"{path} is too large: at most {MAX_PIXELS:,} pixels, got {got}; make it smaller."


def _to_8_bits(path: Path, image: Image.Image, file_format: str | None) -> Image.Image:
    # Pillow's own conversion of these modes cuts at 255 and turns a 16-bit picture white. It reads
    # 16-bit samples of these two formats into 32 bits, some of them in some versions only.
    sixteen_bit = image.mode.startswith("I;16") or (
        image.mode == "I" and file_format in ("PNG", "PPM")
    )
    if sixteen_bit:
        return Image.fromarray(_from_16_bits(np.asarray(image)))
    if image.mode in ("I", "F"):
        raise ImageError(
            f"{path} has 32-bit samples, whose range is not known; convert it to 8 or 16 bits."
        )
    return image


def _from_16_bits(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """``round(value / 257)``: samples (H, W) from 0 to 65535 as 8 bits."""
    scaled = np.empty(samples.size, np.uint8)
    flat = samples.reshape(-1)
    for start in range(0, samples.size, _AT_ONCE):
        part = flat[start : start + _AT_ONCE].astype(np.int64)
        scaled[start : start + _AT_ONCE] = ((part + 128) // 257).clip(0, 255)
    return scaled.reshape(samples.shape)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
