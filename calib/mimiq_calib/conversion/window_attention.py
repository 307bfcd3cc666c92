"""Swin's attention within windows, written out as all attention is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from timm.models.swin_transformer import window_partition
from torch import Tensor, nn

from mimiq_calib.conversion.attention import ExposedAttention
from mimiq_runtime.errors import UnsupportedModelError

if TYPE_CHECKING:
    from timm.models.swin_transformer import SwinTransformerBlock

__all__ = ["ExposedWindowAttention"]


class ExposedWindowAttention(ExposedAttention):
    """timm's ``WindowAttention``: relative position bias, and the mask of shifted windows.

    A window is an entry of the batch: one image brings all its windows, row by row, before the
    next image. Where the windows are shifted, some hold parts that are no neighbours in the image;
    a mask keeps them apart. Where the grid of tokens is no multiple of the window, zeros pad it
    at the bottom and on the right.

    Args:
        block: The timm block whose attention is written out: mask and size of the grid are the
            block's. Parameters are taken over, not copied.
        name: Dotted name of the attention, for messages.

    Attributes:
        windows: How many windows one image brings.
        position_elements: Which elements of the table of relative positions are the bias,
            ``(heads, queries, keys)``.
        visible: Which keys a query may attend to, ``(windows, queries, keys)``, bool; None where
            all are. Keys that only pad the grid are left out. A query that pads sees all keys.
        places: Which tokens are places in the image and do not pad, ``(windows, tokens)``, bool;
            None where all are.

    Raises:
        UnsupportedModelError: The module holds parts that are unknown here, or its mask depends
            on the size of the input.
    """

    position_elements: Tensor
    visible: Tensor | None
    places: Tensor | None

    def __init__(self, block: SwinTransformerBlock, name: str) -> None:
        attention = block.attn
        if getattr(block, "dynamic_mask", False):
            raise UnsupportedModelError(
                name,
                "its masks change with the size of the input; create the model for one img_size, "
                "without dynamic_img_size and with strict_img_size",
            )
        super().__init__(
            attention, name, own_parameters=frozenset({"relative_position_bias_table"})
        )
        self.relative_position_bias_table: nn.Parameter = attention.relative_position_bias_table
        # timm's index, (queries, keys), names a row of the table; this one names its elements.
        heads = torch.arange(self.num_heads, device=attention.relative_position_index.device)
        elements = attention.relative_position_index * self.num_heads + heads[:, None, None]
        self.register_buffer("position_elements", elements, persistent=False)
        self.windows = math.prod(
            -(-size // window)
            for size, window in zip(block.input_resolution, block.window_size, strict=True)
        )
        places = _places(block)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("visible", _visible(block.attn_mask, places), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within windows.

        Args:
            x: Windows, ``(images * windows, tokens, channels)``.
            mask: Added to the logits, ``(windows, tokens, tokens)``: 0 or very negative.
        """
        return self.attend(
            x, self.relative_position_bias_table.flatten()[self.position_elements], mask
        )


def _places(block: SwinTransformerBlock) -> Tensor | None:
    height, width = block.input_resolution
    down, right = (
        -size % window for size, window in zip((height, width), block.window_size, strict=True)
    )
    if not down and not right:
        return None
    grid = torch.ones(1, height, width, 1, device=block.attn.qkv.weight.device)
    padded = nn.functional.pad(grid, (0, 0, 0, right, 0, down))
    windows: Tensor = window_partition(padded, block.window_size)
    return windows.flatten(start_dim=1) > 0


def _visible(mask: Tensor | None, places: Tensor | None) -> Tensor | None:
    if places is None:
        return None if mask is None else mask == 0
    windows, tokens = places.shape
    seen = torch.ones(windows, tokens, tokens, dtype=torch.bool, device=places.device)
    if mask is not None:
        seen = mask == 0
    return (seen & places[:, None, :]) | ~places[:, :, None]
