"""Head similarity of finished images, whatever source they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mimiq_calib.synthesis.head_similarity import head_similarity, mean_head_similarity
from mimiq_calib.taps import attention_taps

if TYPE_CHECKING:
    from mimiq_calib.pixels import PixelScale

__all__ = ["head_similarity_of_images"]


@torch.no_grad()
def head_similarity_of_images(
    teacher: nn.Module, images: Tensor, pixel_scale: PixelScale, *, batch_size: int
) -> float:
    """Mean SSIM between the attention maps of two heads, over images, layers, queries and pairs.

    The figure that ``metrics.jsonl`` has of the synthesis, but of images as they are on disk:
    not changed at random, and in single precision.

    Args:
        teacher: Full-precision model with exposed attention.
        images: uint8 pixels, ``(count, channels, height, width)``.
        pixel_scale: From pixels to the model's input, on the model's device.
        batch_size: Images a forward pass.

    Returns:
        -1 to 1.
    """
    prefix = int(getattr(teacher, "num_prefix_tokens", 0))
    device = next(teacher.parameters()).device
    total = 0.0
    for batch in torch.split(images, batch_size):
        with attention_taps(teacher, "logits") as taps:
            teacher(pixel_scale.normalise(pixel_scale.to_unit(batch.to(device))))
            layers = [
                mean_head_similarity(head_similarity(tap[..., prefix:, prefix:])) for tap in taps
            ]
        total += float(torch.stack(layers).mean()) * len(batch)
    return total / len(images)
