"""Applying the reparametrizations that the recipe asks for, wherever they are exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from timm.layers import Mlp
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimiq_calib.conversion.attention import ExposedAttention
from mimiq_calib.conversion.window_attention import ExposedWindowAttention
from mimiq_calib.fitting_batch import FittingBatch, going_back
from mimiq_calib.observation import MEMORY_KEY
from mimiq_calib.reparametrization.attention_centring import (
    centre_keys_and_values,
    centring_applies,
)
from mimiq_calib.reparametrization.norm_equalisation import equalise_norm
from mimiq_calib.reparametrization.statistics import watch_inputs
from mimiq_calib.reparametrization.value_equalisation import equalise_values
from mimiq_runtime.grid import Grid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mimiq_calib.pixels import PixelScale
    from mimiq_calib.recipe import QuantizationSettings
    from mimiq_calib.reparametrization.statistics import ChannelStatistics

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

    Where the memory of a GPU is not enough for a batch, all is looked at anew in smaller ones.

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
    attentions = list(_pre_norm_attentions(model))
    folds = list(_folds(model))
    watched: dict[str, nn.Module] = {}
    for name, attention in attentions:
        watched |= {name: attention.input_layers()[0], f"{name}.proj": attention.proj}
    watched |= {f"{fold.name} output": fold.layers[0] for fold in folds}
    device = next(model.parameters()).device

    def watch(size: int) -> dict[str, ChannelStatistics]:
        with watch_inputs(watched) as statistics, going_back(advance) as count:
            for batch in torch.split(images, size):
                model(pixel_scale.normalise(pixel_scale.to_unit(batch.to(device))))
                count(len(batch), "")
        return statistics

    statistics = FittingBatch(MEMORY_KEY).run(batch_size, watch)
    # Centring first: it reads the mean input, which equalisation changes.
    if settings.centre_attention:
        for name, attention in attentions:
            if centring_applies(attention):
                centre_keys_and_values(attention, statistics[name])
    if settings.equalise_channels:
        for fold in folds:
            equalise_norm(
                fold.norm,
                fold.layers,
                statistics[f"{fold.name} output"],
                weight_grid=weight_grid,
                activation_grid=activation_grid,
                shift=fold.shift,
            )
        for name, attention in attentions:
            equalise_values(
                attention,
                statistics[f"{name}.proj"],
                weight_grid=weight_grid,
                activation_grid=activation_grid,
            )


@dataclass(frozen=True)
class _Fold:
    """A LayerNorm and all the layers that take its output.

    Attributes:
        name: Dotted name of the LayerNorm.
        norm: The LayerNorm, with a weight.
        layers: At least one.
        shift: Whether a shift can be folded, and not only a factor.
    """

    name: str
    norm: nn.LayerNorm
    layers: list[nn.Linear]
    shift: bool


def _pre_norm_attentions(model: nn.Module) -> Iterator[tuple[str, ExposedAttention]]:
    for name, module in model.named_modules():
        if _is_pre_norm(module):
            yield f"{name}.attn", module.attn


def _folds(model: nn.Module) -> Iterator[_Fold]:
    """Everywhere that a LayerNorm stands directly before Linear layers, whole model in order."""
    for name, module in model.named_modules():
        found: list[_Fold | None] = []
        if _is_pre_norm(module):
            attention: ExposedAttention = module.attn
            pads = isinstance(attention, ExposedWindowAttention) and attention.places is not None
            # Swin pads behind the norm, with zeros that no shift moves.
            found = [_fold(f"{name}.norm1", module.norm1, attention.input_layers(), shift=not pads)]
            if type(module.mlp) is Mlp:
                found.append(_fold(f"{name}.norm2", module.norm2, [module.mlp.fc1]))
        elif type(module) is PatchMerging:
            found = [_fold(f"{name}.norm", module.norm, [module.reduction])]
        yield from (fold for fold in found if fold is not None)


def _fold(
    name: str, norm: nn.Module, layers: list[nn.Module], *, shift: bool = True
) -> _Fold | None:
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if not isinstance(norm, nn.LayerNorm) or norm.weight is None or linear != layers:
        return None
    biased = all(part.bias is not None for part in (norm, *linear))
    return _Fold(name, norm, linear, shift=shift and biased)


def _is_pre_norm(module: nn.Module) -> bool:
    """Timm's blocks whose normalisations stand directly before attention and before the MLP."""
    known = type(module) in (Block, SwinTransformerBlock)
    return known and isinstance(module.attn, ExposedAttention)
