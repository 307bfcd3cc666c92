"""Attention maps against timm's own attention, computed a second time from its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _helpers.tiny_students import images, tiny_swin, tiny_vit
from torch import Tensor

from mimiq_calib.attention_maps import attention_maps, query_of_maps
from mimiq_calib.conversion.convert import expose_attention


def probabilities_of_vit(model: Any, x: Tensor) -> list[Tensor]:
    """Softmax of each block's attention, by the weights of timm's unchanged model."""
    found = []
    for block in model.blocks:
        block.register_forward_pre_hook(
            lambda block, inputs: found.append(_softmax(block, *inputs))
        )
    with torch.no_grad():
        model(x)
    return found


def _softmax(block: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        qkv = block.attn.qkv(block.norm1(tokens))
    batch, count, _ = tokens.shape
    query, key, _ = qkv.reshape(batch, count, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1)


@pytest.mark.parametrize("registers", [0, 3])
def test_the_class_token_is_the_query(registers: int) -> None:
    model = tiny_vit(reg_tokens=registers)
    maps = attention_maps(expose_attention(model), images(2))
    assert list(maps) == ["blocks.0.attn", "blocks.1.attn"]
    for own, expected in zip(maps.values(), probabilities_of_vit(model, images(2)), strict=True):
        seen = expected.mean(dim=1)[:, 0, 1 + registers :].reshape(2, 4, 4)
        torch.testing.assert_close(own, seen)
    assert "class token" in query_of_maps(model)


def test_without_a_class_token_all_places_are() -> None:
    model = tiny_vit(class_token=False, global_pool="avg")
    maps = attention_maps(expose_attention(model), images(2))
    for own, expected in zip(maps.values(), probabilities_of_vit(model, images(2)), strict=True):
        torch.testing.assert_close(own, expected.mean(dim=(1, 2)).reshape(2, 4, 4))
        torch.testing.assert_close(own.sum(dim=(1, 2)), torch.ones(2))
    assert "all places" in query_of_maps(model)


def test_windows_go_back_to_where_they_came_from() -> None:
    """Keys that answer by their place in the image: the map must show that place."""
    model = expose_attention(tiny_swin())
    maps = attention_maps(model, images(2))
    shapes = [tuple(found.shape) for found in maps.values()]
    assert shapes == [(2, 8, 8), (2, 8, 8), (2, 4, 4), (2, 4, 4)]
    # The first block's windows are not shifted: its map is a mosaic of four windows.
    block: Any = model.get_submodule("layers.0.blocks.0")
    recorded: list[Tensor] = []
    block.attn.probability_quantizer.register_forward_hook(lambda *hook: recorded.append(hook[2]))
    shifted: Any = model.get_submodule("layers.0.blocks.1")
    shifted.attn.probability_quantizer.register_forward_hook(lambda *hook: recorded.append(hook[2]))
    with torch.no_grad():
        model(images(2))
    plain, moved = (found.mean(dim=(1, 2)).reshape(2, 2, 2, 4, 4) for found in recorded[:2])
    mosaic = torch.cat([torch.cat(list(row.unbind(1)), dim=2) for row in plain.unbind(1)], dim=1)
    torch.testing.assert_close(maps["layers.0.blocks.0.attn"], mosaic)
    # The second one's are shifted by two: place (r, c) lies in the window at (r - 2, c - 2).
    own = maps["layers.0.blocks.1.attn"]
    for row in range(8):
        for column in range(8):
            r, c = (row - 2) % 8, (column - 2) % 8
            expected = moved[:, r // 4, c // 4, r % 4, c % 4]
            torch.testing.assert_close(own[:, row, column], expected)


def test_nothing_is_left_on_the_model() -> None:
    model = expose_attention(tiny_vit())
    attention_maps(model, images(1))
    assert not any(module._forward_hooks for module in model.modules())
