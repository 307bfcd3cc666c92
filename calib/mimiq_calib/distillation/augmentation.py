"""Random changes to synthetic images while distilling; teacher and student see the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.transforms import v2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimiq_calib.recipe import AugmentationSettings

__all__ = ["augment_images", "make_augmentation"]

BLUR_SHARE = 23 / 224
"""The paper's blur has a kernel of 23 pixels at an input of 224."""

CHANNELS_WITH_COLOUR = (1, 3)
"""Grayscale and RGB. Nobody knows what other channels are, so nothing changes their colour."""


def make_augmentation(
    settings: AugmentationSettings, input_size: tuple[int, int, int]
) -> v2.Transform:
    """The chain of changes for one image in 0..1, ``(channels, height, width)``.

    Args:
        settings: Which changes, and how likely. Those of the colour are left out for images that
            are neither grayscale nor RGB.
        input_size: Channels of the images; height and width of the result in pixels.
    """
    if not settings.enabled:
        return v2.Identity()
    channels, *size = input_size
    kernel = 2 * max(1, round(BLUR_SHARE * min(size) / 2)) + 1
    colour: list[v2.Transform] = [
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=settings.colour),
        v2.RandomGrayscale(settings.grayscale),
    ]
    steps: list[v2.Transform] = [
        v2.RandomResizedCrop(size, scale=(settings.smallest_crop, 1.0), antialias=True),
        v2.RandomHorizontalFlip(0.5 if settings.flip else 0.0),
        *(colour if channels in CHANNELS_WITH_COLOUR else []),
        v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], p=settings.blur),
    ]
    return v2.Compose(steps)


def augment_images(images: Tensor, augmentation: v2.Transform, seeds: Sequence[int]) -> Tensor:
    """Change each image of ``(batch, channels, height, width)`` in 0..1 on its own.

    Args:
        images: The images, on any device; what becomes of them is drawn on the CPU.
        augmentation: What :func:`make_augmentation` returned.
        seeds: One an image: what becomes of an image does not depend on the others, so that
            processes may share a batch.
    """
    # torchvision draws from the global generator: it is given back as it was.
    with torch.random.fork_rng(devices=[]):
        changed = []
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            changed.append(augmentation(image))
    return torch.stack(changed)
