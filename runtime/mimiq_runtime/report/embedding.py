"""Pictures within the page, as data: no file beside it."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mimiq_runtime.errors import ImageError
from mimiq_runtime.images import load_image

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["embed_file", "embed_map", "embed_pixels", "embed_thumbnail"]

_WIDEST = 1200
_THUMBNAIL = 144
_SMALL = 64
"""Pictures up to this side are stored without loss: JPEG would blur each of their pixels."""


def embed_file(path: Path) -> str:
    """A PNG of the run as a ``data:`` address, made smaller where it is wider than the page.

    Raises:
        ImageError: It cannot be read.
    """
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            channels = 1 if opened.mode == "L" else 3
    # As in load_image: a damaged file makes a decoder raise nearly anything.
    except Exception as error:
        raise ImageError(f"{path} cannot be read as PNG: {error!s:.200}.") from error
    image = load_image(path, channels=channels)
    if image.width > _WIDEST:
        image.thumbnail((_WIDEST, 4 * _WIDEST), Image.Resampling.LANCZOS)
        return _address(image, lossless=False)
    return _address(image, lossless=image.width <= _WIDEST // 2)


def embed_thumbnail(path: Path, *, channels: int) -> str:
    """A photograph, small, as a ``data:`` address.

    Raises:
        ImageError: It cannot be read.
    """
    image = load_image(path, channels=channels)
    image.thumbnail((2 * _THUMBNAIL, 2 * _THUMBNAIL), Image.Resampling.LANCZOS)
    return _address(image, lossless=max(image.size) <= _SMALL)


def embed_pixels(pixels: NDArray[np.uint8]) -> str:
    """Pixels ``(channels, height, width)``; of any other number than 1 or 3 the mean is shown."""
    if pixels.shape[0] not in (1, 3):
        pixels = pixels.mean(axis=0, keepdims=True).round().astype(np.uint8)
    rows = np.ascontiguousarray(pixels.transpose(1, 2, 0).squeeze())
    image = Image.fromarray(rows)
    image.thumbnail((2 * _THUMBNAIL, 2 * _THUMBNAIL), Image.Resampling.LANCZOS)
    return _address(image, lossless=max(image.size) <= _SMALL)


def embed_map(values: NDArray[np.floating[Any]], largest: float) -> str:
    """A map ``(rows, columns)`` in colours, dark for 0 and bright for ``largest``."""
    import matplotlib

    colours = matplotlib.colormaps["inferno"](values / largest if largest > 0 else values)
    pixels = (255 * colours[..., :3]).round().astype(np.uint8)
    return _address(Image.fromarray(pixels), lossless=True)


def _address(image: Image.Image, *, lossless: bool) -> str:
    stream = io.BytesIO()
    if lossless:
        image.save(stream, format="PNG", optimize=True)
    else:
        image.save(stream, format="JPEG", quality=82, optimize=True)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
