r"""Pictures of random shapes that cover one another: what photographs and synthetic images share.

Images made from a model's weights are few and alike in what no loss asks for: contrast, edges,
plain areas, sizes of things. A student fitted to them alone fits all that, too. The dead leaves
model (Lee, Mumford and Huang, IJCV 2001) throws shapes onto the picture, the later over the
earlier, with radii r of density :math:`r^{-3}`; that makes the statistics of natural images
independent of scale. Networks learn useful features from such pictures alone (Baradad et al.,
NeurIPS 2021, arXiv 2106.05963). Here they only widen what a block sees while it is quantized.
No data is used, and nothing is learned to make them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from mimiq_calib.randomness import piece_seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float64]

__all__ = ["dead_leaves", "interleaved"]

STAGE = "dead leaves"

SMALLEST, LARGEST = 0.02, 0.6
"""Radii of shapes, as shares of the picture's shorter side."""

FEWEST, MOST = 20, 250
"""How many shapes are thrown onto one picture."""

EXPONENTS = (0.7, 1.6)
"""A texture's amplitude falls with the frequency to a power between these."""

TEXTURES = 4
BLUR = 1.2
"""Largest standard deviation of the final blur, in pixels at a shorter side of 224."""


def dead_leaves(
    count: int,
    input_size: tuple[int, int, int],
    *,
    seed: int,
    on_picture: Callable[[int], None] = lambda number: None,
) -> Tensor:
    """Draw pictures; each depends on the seed and its own number only.

    Args:
        count: How many.
        input_size: Channels, height and width in pixels.
        seed: Seed of the run.
        on_picture: Called with the number of each picture, from 0, when it is drawn.

    Returns:
        uint8 ``(count, channels, height, width)``.
    """
    pictures = torch.empty((count, *input_size), dtype=torch.uint8)
    for number in range(count):
        generator = np.random.default_rng(piece_seed(seed, STAGE, number))
        unit = torch.from_numpy(_picture(input_size, generator))
        sigma = generator.uniform(0, BLUR) * min(input_size[1:]) / 224
        # Narrower than this a blur changes nothing.
        if sigma > 0.1:
            unit = gaussian_blur(unit, [2 * int(np.ceil(3 * sigma)) + 1] * 2, [sigma, sigma])
        pictures[number] = (unit.clamp(0, 1) * 255).round().to(torch.uint8)
        on_picture(number)
    return pictures


def interleaved(first: Tensor, second: Tensor) -> Tensor:
    """All of both, evenly mixed, so that a part from the front holds both in their proportion.

    Args:
        first: ``(n, ...)``; of two that fall together, this one goes first.
        second: ``(m, ...)``.
    """
    positions = [(torch.arange(len(part)) + 0.5) / len(part) for part in (first, second)]
    return torch.cat([first, second])[torch.cat(positions).argsort(stable=True)]


def _picture(size: tuple[int, int, int], generator: np.random.Generator) -> Array:
    channels, height, width = size
    textures = [_texture(size, generator) for _ in range(TEXTURES)]
    colour = generator.uniform(0, 1, (channels, 1, 1))
    picture: Array = colour + generator.uniform(0.02, 0.25) * textures[0]
    number = int(generator.integers(FEWEST, MOST))
    for radius in _radii(number, min(height, width), generator):
        rows, columns, mask = _shape(radius, height, width, generator)
        texture = textures[generator.integers(TEXTURES)][:, rows, columns]
        colour = generator.uniform(0, 1, (channels, 1, 1))
        filled = colour + generator.uniform(0, 0.2) * texture
        picture[:, rows, columns] = np.where(mask, filled, picture[:, rows, columns])
    return picture


def _radii(number: int, side: int, generator: np.random.Generator) -> Array:
    """Radii in pixels of density r^-3 between the smallest and the largest: inverse sampling."""
    low, high = (SMALLEST * side) ** -2, (LARGEST * side) ** -2
    radii: Array = generator.uniform(high, low, number) ** -0.5
    return radii


def _texture(size: tuple[int, int, int], generator: np.random.Generator) -> Array:
    """Noise whose amplitude falls with the frequency; mean 0 a channel, variance 1 in all."""
    _, height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf  # no constant part
    spectrum = np.fft.rfft2(generator.normal(size=size)) / frequency ** generator.uniform(
        *EXPONENTS
    )
    texture = np.fft.irfft2(spectrum, s=(height, width))
    unit: Array = texture / texture.std()
    return unit


def _shape(
    radius: float, height: int, width: int, generator: np.random.Generator
) -> tuple[slice, slice, NDArray[np.bool_]]:
    """An ellipse, a rectangle or a triangle, turned: its rows, its columns, and where it is."""
    y, x = generator.uniform(0, height), generator.uniform(0, width)
    # No shape reaches further than 1.5 radii from its centre.
    rows = slice(max(0, int(y - 1.5 * radius)), min(height, int(y + 1.5 * radius) + 1))
    columns = slice(max(0, int(x - 1.5 * radius)), min(width, int(x + 1.5 * radius) + 1))
    down, right = np.mgrid[rows, columns]
    angle, flatness = generator.uniform(0, np.pi), generator.uniform(0.3, 1)
    along = ((right - x) * np.cos(angle) + (down - y) * np.sin(angle)) / radius
    across = ((down - y) * np.cos(angle) - (right - x) * np.sin(angle)) / (radius * flatness)
    masks = (
        along**2 + across**2 < 1,
        np.maximum(np.abs(along), np.abs(across)) < 0.8,
        (across > -0.5) & (across < 1 - 2 * np.abs(along)),
    )
    mask: NDArray[np.bool_] = masks[generator.integers(len(masks))]
    return rows, columns, mask
