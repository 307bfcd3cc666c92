"""Applying the reparametrizations that the recipe asks for, wherever they are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimiq_calib.conversion.attention import ExposedAttention
from mimiq_calib.reparametrization.attention_centring import (
    centre_keys_and_values,
    centring_applies,
)
from mimiq_calib.reparametrization.norm_equalisation import equalise_norm
from mimiq_calib.reparametrization.statistics import ChannelStatistics, watch_inputs
from mimiq_calib.reparametrization.value_equalisation import equalise_values
from mimiq_runtime.grid import Grid

if TYPE_CHECKING:
    from collections.abc import Callable

    from mimiq_calib.pixels import PixelScale
    from mimiq_calib.recipe import QuantizationSettings

__all__ = ["reparametrize"]


@torch.no_grad()
def reparametrize(
    model: nn.Module,
    settings: QuantizationSettings,
    images: Tensor,
    pixel_scale: PixelScale,
    *,
    batch_size: int,
    advance: Callable[[int, str], None],
) -> None:
    """Centre keys and values; equalise the channels of LayerNorm and attention outputs.

    Args:
        model: A model with exposed attention, not quantized; changed, its function is not.
        settings: Which of them, and the bit widths that they prepare for.
        images: uint8 pixels, ``(count, channels, height, width)``.
        pixel_scale: From pixels to the model's input, on the model's device.
        batch_size: Images a forward pass.
        advance: Called with the number of images done and a note.
    """
    weight_grid = Grid.signed(settings.weight_bits)
    activation_grid = Grid.signed(settings.activation_bits)
    blocks: list[tuple[str, Block]] = [
        (name, module) for name, module in model.named_modules() if _is_pre_norm(module)
    ]
    watched: dict[str, nn.Module] = {}
    for name, block in blocks:
        watched |= {f"{name}.qkv": block.attn.qkv, f"{name}.proj": block.attn.proj}
        if isinstance(block.mlp, Mlp):
            watched[f"{name}.fc1"] = block.mlp.fc1
    device = next(model.parameters()).device
    with watch_inputs(watched) as statistics:
        for batch in torch.split(images, batch_size):
            model(pixel_scale.normalise(pixel_scale.to_unit(batch.to(device))))
            advance(len(batch), "")
    for name, block in blocks:
        attention: ExposedAttention = block.attn
        qkv_inputs = statistics[f"{name}.qkv"]
        if settings.centre_attention and centring_applies(attention):
            centre_keys_and_values(attention, qkv_inputs)
        if settings.equalise_channels:
            _equalise(block.norm1, attention, qkv_inputs, weight_grid, activation_grid)
            equalise_values(
                attention,
                statistics[f"{name}.proj"],
                weight_grid=weight_grid,
                activation_grid=activation_grid,
            )
        if isinstance(block.mlp, Mlp):
            _prepare_mlp(block, settings, statistics, name, weight_grid, activation_grid)


def _prepare_mlp(
    block: Block,
    settings: QuantizationSettings,
    statistics: dict[str, ChannelStatistics],
    name: str,
    weight_grid: Grid,
    activation_grid: Grid,
) -> None:
    mlp = block.mlp
    if settings.equalise_channels and _can_fold(block.norm2, mlp.fc1):
        equalise_norm(
            block.norm2,
            [mlp.fc1],
            statistics[f"{name}.fc1"],
            weight_grid=weight_grid,
            activation_grid=activation_grid,
        )


def _equalise(
    norm: nn.LayerNorm,
    attention: ExposedAttention,
    outputs: ChannelStatistics,
    weight_grid: Grid,
    activation_grid: Grid,
) -> None:
    layers = [layer for layer in (attention.qkv, attention.gate) if isinstance(layer, nn.Linear)]
    if all(_can_fold(norm, layer) for layer in layers):
        equalise_norm(
            norm, layers, outputs, weight_grid=weight_grid, activation_grid=activation_grid
        )


def _can_fold(norm: nn.Module, layer: nn.Module) -> bool:
    affine = isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
    return affine and isinstance(layer, nn.Linear) and layer.bias is not None


def _is_pre_norm(module: nn.Module) -> bool:
    """Timm's Block: normalisation stands directly before attention and before the MLP."""
    return type(module) is Block and isinstance(module.attn, ExposedAttention)
