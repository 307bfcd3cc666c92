"""Total variation: the prior that neighbouring pixels are alike."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
from torch.linalg import vector_norm

__all__ = ["total_variation"]


def total_variation(images: Tensor) -> Tensor:
    r"""Sum of the L2 norms of the differences to four neighbours.

    :math:`\|\Delta_x\| + \|\Delta_y\| + (\|\Delta_\searrow\| + \|\Delta_\swarrow\|) / \sqrt 2`,
    each norm over the whole batch, as in DeepInversion's code and MimiQ's. The strength on one
    image therefore falls with the square root of the batch size.

    Args:
        images: ``(batch, channels, height, width)``.

    Returns:
        Scalar.
    """
    horizontal = images[..., :, 1:] - images[..., :, :-1]
    vertical = images[..., 1:, :] - images[..., :-1, :]
    falling = images[..., 1:, 1:] - images[..., :-1, :-1]
    rising = images[..., :-1, 1:] - images[..., 1:, :-1]
    straight = vector_norm(horizontal) + vector_norm(vertical)
    diagonal = vector_norm(falling) + vector_norm(rising)
    total: Tensor = straight + diagonal / math.sqrt(2)
    return total
