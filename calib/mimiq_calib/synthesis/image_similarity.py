"""Head similarity of finished images, whatever source they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mimiq_calib.synthesis.head_similarity import mean_head_similarity
from mimiq_calib.synthesis.layer_similarity import layer_similarities
from mimiq_calib.taps import attention_taps

if TYPE_CHECKING:
    from mimiq_calib.pixels import PixelScale

__all__ = ["HeadSimilarity", "head_similarity_of_images"]


@dataclass(frozen=True)
class HeadSimilarity:
    """Mean over images, layers, queries and pairs of different heads.

    Attributes:
        ssim: Of the SSIM of their attention maps, -1 to 1.
        squared: Of its square, 0 to 1: what the method's loss raises, for which opposite maps are
            alike.
    """

    ssim: float
    squared: float


@torch.no_grad()
def head_similarity_of_images(
    teacher: nn.Module, images: Tensor, pixel_scale: PixelScale, *, batch_size: int
) -> HeadSimilarity:
    """How alike the attention maps of different heads are.

    ``ssim`` is the figure that ``metrics.jsonl`` has of the synthesis, but of images as they are
    on disk: not changed at random, and in single precision.

    Args:
        teacher: Full-precision model with exposed attention.
        images: uint8 pixels, ``(count, channels, height, width)``.
        pixel_scale: From pixels to the model's input, on the model's device.
        batch_size: Images a forward pass.
    """
    device = next(teacher.parameters()).device
    total = torch.zeros(2, dtype=torch.float64)
    for batch in torch.split(images, batch_size):
        with attention_taps(teacher, "logits") as taps:
            teacher(pixel_scale.normalise(pixel_scale.to_unit(batch.to(device))))
            layers = layer_similarities(teacher, list(taps))
        for power in (1, 2):
            means = [mean_head_similarity(layer.pow(power)) for layer in layers]
            total[power - 1] += float(torch.stack(means).mean()) * len(batch)
    ssim, squared = (total / len(images)).tolist()
    return HeadSimilarity(ssim, squared)
