"""Total variation: the prior that neighbouring pixels are alike."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
from torch.linalg import vector_norm

__all__ = ["total_variation"]


def total_variation(images: Tensor, *, diagonal_weight: float = 1 / math.sqrt(2)) -> Tensor:
    r"""Sum of the L2 norms of the differences to four neighbours.

    :math:`\|\Delta_x\| + \|\Delta_y\| + w (\|\Delta_\searrow\| + \|\Delta_\swarrow\|)`, each norm
    over the whole batch, as in DeepInversion's code and those that follow it. The strength on one
    image therefore falls with the square root of the batch size.

    Args:
        images: ``(batch, channels, height, width)``.
        diagonal_weight: w; MimiQ weighs diagonal neighbours by their distance, PSAQ-ViT as others.

    Returns:
        Scalar.
    """
    horizontal = images[..., :, 1:] - images[..., :, :-1]
    vertical = images[..., 1:, :] - images[..., :-1, :]
    falling = images[..., 1:, 1:] - images[..., :-1, :-1]
    rising = images[..., :-1, 1:] - images[..., 1:, :-1]
    straight = vector_norm(horizontal) + vector_norm(vertical)
    diagonal = vector_norm(falling) + vector_norm(rising)
    total: Tensor = straight + diagonal_weight * diagonal
    return total
