"""The demo's data: scikit-learn's handwritten digits, upscaled to 32x32 grayscale images.

The 1797 scans ship inside scikit-learn, so the demo needs no download. They are 8x8 with values
0..16; the model works on 32x32 so that its 4x4 patches give it a grid of 8x8 tokens.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mimiq_runtime.errors import MissingDependencyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE_SIZE = 32
"""Side of an upscaled image, in pixels."""

NUM_CLASSES = 10
"""The digits 0 to 9."""

HELD_OUT_FRACTION = 1 / 3
"""Share of the scans that training never sees."""

_SCAN_MAX = 16
_SPLIT_SEED = 0


@dataclass(frozen=True)
class DigitsSplit:
    """The digits, split once and for all into a training part and a held-out third.

    Attributes:
        train_images: Training images, `(N, 32, 32)` grayscale, 0 (paper) to 255 (ink).
        train_labels: Training labels, `(N,)`, the digit 0..9.
        test_images: Held-out images, `(M, 32, 32)`, as `train_images`.
        test_labels: Held-out labels, `(M,)`, as `train_labels`.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def load_digits_split() -> DigitsSplit:
    """Load the digits and split them, the same way on every call.

    Returns:
        1198 training and 599 held-out images, every digit equally frequent in both parts up to
        rounding.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise MissingDependencyError("sklearn", extra="demo") from error

    scans, digits = load_digits(return_X_y=True)
    images = _upscale(scans.reshape(-1, 8, 8))
    labels = digits.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images,
        labels,
        test_size=HELD_OUT_FRACTION,
        stratify=labels,
        random_state=_SPLIT_SEED,
    )
    return DigitsSplit(train_images, train_labels, test_images, test_labels)


def write_image_folder(
    images: NDArray[np.uint8], labels: NDArray[np.int64], folder: str | Path
) -> None:
    """Write images as PNG files, with a `labels.csv` beside them.

    The files are named by their position (`0000.png`, `0001.png`, ...), so that sorting by name
    keeps the order of the arrays. Files of the same names are overwritten.

    Args:
        images: Grayscale images, `(N, H, W)`, 0..255.
        labels: One class index per image, `(N,)`.
        folder: Where to write; created, with its parents, if it does not exist.

    Raises:
        ValueError: `images` and `labels` differ in length.
        OSError: The folder or a file in it cannot be written.
    """
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images but {len(labels)} labels")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "label"])
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{index:04d}.png"
            Image.fromarray(image).save(folder / name)
            table.writerow([name, int(label)])


def _upscale(scans: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Scale `(N, 8, 8)` scans from 0..16 to 0..255 and resize them to `(N, 32, 32)`."""
    pixels = np.rint(scans * (255 / _SCAN_MAX)).astype(np.uint8)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return np.stack(
        [
            np.asarray(Image.fromarray(scan).resize(size, Image.Resampling.BICUBIC))
            for scan in pixels
        ]
    )
