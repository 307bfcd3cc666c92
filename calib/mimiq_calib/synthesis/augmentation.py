"""Random changes to the images under optimisation, so that no single pixel carries a class.

Both follow the published methods (sections 2.5 and 2.6 of docs/method.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DiagonalRoll", "SynthesisAugmentation"]

PAPER_INPUT = 224
MIMIQ_JITTER, PSAQ_JITTER = 8, 15
"""Largest shifts in pixels at :data:`PAPER_INPUT`."""

OFFSET_STRENGTH = 0.5


class SynthesisAugmentation:
    """MimiQ's: shift, mirror, offset and contrast, drawn anew at every step.

    Args:
        input_size: Height and width of the images in pixels; the paper's shift of 8 pixels at
            224 is scaled to it.
        iterations: Length of the optimisation: the shift doubles half-way, the offset fades.
        jitter: Largest shift in pixels in the first half, or None for the scaled default.
        flip: Whether images are mirrored at random.
        generator: Source of randomness.
    """

    def __init__(
        self,
        input_size: tuple[int, int],
        iterations: int,
        *,
        jitter: int | None,
        flip: bool,
        generator: torch.Generator,
    ) -> None:
        self._jitter = _scaled(MIMIQ_JITTER, input_size) if jitter is None else jitter
        self._iterations = iterations
        self._flip = flip
        self._generator = generator

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Change normalised images ``(batch, channels, height, width)`` for one step."""
        images = self._shift(images, step)
        if self._flip and self._uniform(1).item() < 0.5:
            images = images.flip(-1)
        per_channel = (images.shape[0], images.shape[1], 1, 1)
        remaining = (self._iterations - step) / self._iterations
        offset = self._normal(per_channel) * OFFSET_STRENGTH * remaining
        mean = self._uniform(per_channel) * 2 - 1
        spread = torch.exp(self._uniform(per_channel) * 2 - 1)
        return (images + (offset - mean).to(images)) / spread.to(images)

    def _shift(self, images: Tensor, step: int) -> Tensor:
        limit = self._jitter if step < self._iterations // 2 else 2 * self._jitter
        shifts = torch.randint(-limit, limit + 1, (2,), generator=self._generator)
        return torch.roll(images, shifts=shifts.tolist(), dims=(-2, -1))

    def _uniform(self, shape: int | tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self._generator)

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._generator)


class DiagonalRoll:
    """PSAQ-ViT's: a shift by the same number of pixels down and right, and a mirror.

    Args:
        input_size: Height and width of the images in pixels; the paper's shift of 15 pixels at
            224 is scaled to it.
        round_length: Steps after which the shift doubles.
        jitter: Largest shift in pixels in the first round, or None for the scaled default.
        flip: Whether images are mirrored at random.
        generator: Source of randomness.
    """

    def __init__(
        self,
        input_size: tuple[int, int],
        round_length: int,
        *,
        jitter: int | None,
        flip: bool,
        generator: torch.Generator,
    ) -> None:
        self._jitter = _scaled(PSAQ_JITTER, input_size) if jitter is None else jitter
        self._round_length = round_length
        self._flip = flip
        self._generator = generator

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Change normalised images ``(batch, channels, height, width)`` for one step."""
        limit = self._jitter if step < self._round_length else 2 * self._jitter
        shift = int(torch.randint(-limit, limit + 1, (), generator=self._generator))
        images = torch.roll(images, shifts=(shift, shift), dims=(-2, -1))
        if self._flip and torch.rand((), generator=self._generator) < 0.5:
            images = images.flip(-1)
        return images


def _scaled(paper_jitter: int, input_size: tuple[int, int]) -> int:
    return max(1, round(paper_jitter * min(input_size) / PAPER_INPUT))
