"""Between 8-bit pictures and the model's normalised input, in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mimiq_runtime.manifest import Preprocessing

__all__ = ["PixelScale"]


class PixelScale:
    """The affine map between pixels 0..255 and normalised input, by channel.

    Args:
        preprocessing: Mean and standard deviation of each channel.
        device: Where the images are.
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self._mean = torch.tensor(preprocessing.mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=device).view(-1, 1, 1)

    @property
    def low(self) -> Tensor:
        """Normalised value of a black pixel, ``(channels, 1, 1)``."""
        return -self._mean / self._std

    @property
    def high(self) -> Tensor:
        """Normalised value of a white pixel, ``(channels, 1, 1)``."""
        return (1 - self._mean) / self._std

    def clamp_(self, images: Tensor) -> Tensor:
        """Bring normalised images back into the range of real pixels, in place."""
        return images.clamp_(self.low, self.high)

    def to_unit(self, pixels: Tensor) -> Tensor:
        """Pixels 0..255 of any shape as single precision 0..1."""
        return pixels.float() / 255

    def normalise(self, unit: Tensor) -> Tensor:
        """Images in 0..1, ``(batch, channels, height, width)``, as the model's input."""
        return (unit - self._mean) / self._std

    def to_pixels(self, images: Tensor) -> Tensor:
        """Normalised images as the nearest 8-bit pixels, uint8, same shape."""
        unit = images.float() * self._std + self._mean
        return (unit * 255).round().clamp(0, 255).to(torch.uint8)
