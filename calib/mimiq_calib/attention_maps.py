"""Where a model looks: one map of its attention a layer, over the places of the image."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock, window_reverse
from torch import Tensor, nn

from mimiq_calib.conversion.attention import ExposedAttention
from mimiq_calib.conversion.window_attention import ExposedWindowAttention

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["attention_maps", "query_of_maps"]


def query_of_maps(model: nn.Module) -> str:
    """Whose attention :func:`attention_maps` shows for a model, in words."""
    if _has_class_token(model):
        return "the class token, mean over the heads"
    return "all places of the image, mean over them and over the heads"


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Share of the attention that each place of the image gets, layer by layer.

    In a model with a class token it is that token's attention, the other prefix tokens left out.
    In one without it is what all places give, which sums to the number of places; within windows
    each window has a sum of its own.

    Args:
        model: A teacher or a student, its attention exposed.
        images: Normalised, ``(batch, channels, height, width)``.

    Returns:
        By name of the attention ``(batch, rows, columns)``; a layer whose tokens are no grid is
        left out.
    """
    with _probabilities(model) as recorded:
        model(images)
        return {
            name: grid.float().cpu()
            for name, values in recorded.items()
            if (grid := _as_grid(model, name, values)) is not None
        }


@contextlib.contextmanager
def _probabilities(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What stands on the values in each attention, ``(batch, heads, queries, keys)``, by name."""
    recorded: dict[str, Tensor] = {}
    handles = [
        module.probability_quantizer.register_forward_hook(
            lambda _module, _inputs, output, name=name: recorded.update({name: output})
        )
        for name, module in model.named_modules()
        if isinstance(module, ExposedAttention)
    ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _as_grid(model: nn.Module, name: str, probabilities: Tensor) -> Tensor | None:
    attention = model.get_submodule(name)
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(attention, ExposedWindowAttention):
        if isinstance(parent, SwinTransformerBlock):
            return _over_windows(parent, attention, probabilities)
        return None
    return _over_all_places(model, probabilities)


def _over_all_places(model: nn.Module, probabilities: Tensor) -> Tensor | None:
    anything: Any = model
    rows, columns = anything.patch_embed.grid_size
    prefix = probabilities.shape[-1] - rows * columns
    if prefix < 0:
        return None
    heads = probabilities.mean(dim=1)
    seen = heads[:, 0] if _has_class_token(model) else heads[:, prefix:].mean(dim=1)
    return seen[:, prefix:].reshape(len(seen), rows, columns)


def _over_windows(
    block: SwinTransformerBlock, attention: ExposedWindowAttention, probabilities: Tensor
) -> Tensor:
    """Put what each window's places get back to where the window came from."""
    height, width = block.input_resolution
    window = block.window_size
    given = probabilities.mean(dim=1)
    if attention.places is not None:
        # Queries that only pad the grid look at nothing that counts.
        places = attention.places.repeat(len(given) // len(attention.places), 1)
        given = given * places[..., None] / places.float().mean(dim=1)[:, None, None]
    seen = given.mean(dim=1).reshape(len(given), *window, 1)
    padded = [size + -size % side for size, side in zip((height, width), window, strict=True)]
    grid: Tensor = window_reverse(seen, window, *padded)[:, :height, :width, 0]
    return torch.roll(grid, shifts=tuple(block.shift_size), dims=(1, 2))


def _has_class_token(model: nn.Module) -> bool:
    return getattr(model, "cls_token", None) is not None
