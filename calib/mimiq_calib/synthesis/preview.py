"""A picture of the first synthetic images, to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["write_preview"]

PREVIEW = "images/preview.png"
COLUMNS, ROWS, GAP = 8, 4, 2


def write_preview(run: RunDirectory, shards: Sequence[str]) -> None:
    """Write the first images of a run as one PNG and record it.

    One channel is shown as grayscale, three as RGB; of any other number the mean, as grayscale.

    Args:
        run: The run.
        shards: Names of its shards, in order.
    """
    images: list[np.ndarray] = []
    for shard in shards:
        if len(images) >= COLUMNS * ROWS:
            break
        shown = run.read_tensors(shard, made_by="mimiq-deploy calibrate")["images"]
        if shown.shape[1] not in (1, 3):
            shown = shown.mean(axis=1, keepdims=True).round().astype(np.uint8)
        images.extend(shown)
    with run.replacing(PREVIEW) as temporary:
        _grid(images[: COLUMNS * ROWS]).save(temporary, format="PNG")


def _grid(images: Sequence[np.ndarray]) -> Image.Image:
    channels, height, width = images[0].shape
    rows = -(-len(images) // COLUMNS)
    columns = min(len(images), COLUMNS)
    shape = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels)
    canvas = np.full(shape, 255, dtype=np.uint8)
    for number, image in enumerate(images):
        top = GAP + number // COLUMNS * (height + GAP)
        left = GAP + number % COLUMNS * (width + GAP)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return Image.fromarray(canvas.squeeze(-1) if channels == 1 else canvas)
