"""Whether a model answers with numbers at all, before hours are spent on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mimiq_calib.pixels import PixelScale
from mimiq_runtime.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

    from mimiq_runtime.manifest import Preprocessing

__all__ = ["check_answers"]


@torch.no_grad()
def check_answers(model: nn.Module, preprocessing: Preprocessing) -> None:
    """Refuse a model whose finite weights make logits that are no finite numbers.

    Args:
        model: In inference mode; it is asked about one image of noise.
        preprocessing: Size of the input and the scale of its pixels.

    Raises:
        CheckpointError: A logit is NaN or infinite.
    """
    device = next(model.parameters()).device
    scale = PixelScale(preprocessing, device)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((1, *preprocessing.input_size), generator=generator)
    if not torch.isfinite(model(scale.normalise(noise.to(device)))).all():
        raise CheckpointError(
            "The full-precision model gives logits that are not finite numbers, although its "
            "weights are finite: somewhere they are too large for single precision; check the "
            "checkpoint."
        )
