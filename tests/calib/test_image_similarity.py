from __future__ import annotations

import numpy as np
import pytest
import torch
from _helpers.calib_cases import PIXEL_SCALE, pixels
from _helpers.tiny_students import tiny_vit
from timm.layers import Attention
from torch import Tensor, nn

from mimiq_calib.conversion.convert import expose_attention
from mimiq_calib.synthesis.image_similarity import head_similarity_of_images

IMAGES = pixels(5)


def slow_similarity_of_heads(attention: Attention, x: Tensor) -> tuple[float, float]:
    """From timm's own qkv weights: SSIM of two different heads, patches only, in numpy: its mean
    and that of its square."""
    batch, tokens, width = x.shape
    heads = attention.num_heads
    qkv = (x @ attention.qkv.weight.T + attention.qkv.bias).double().numpy()
    q, k, _ = qkv.reshape(batch, tokens, 3, heads, width // heads).transpose(2, 0, 3, 1, 4)
    maps = (q @ k.transpose(0, 1, 3, 2))[:, :, 1:, 1:]
    low, high = maps.min(-1, keepdims=True), maps.max(-1, keepdims=True)
    maps = (maps - low) / (high - low)
    found = []
    for image, query, i, j in np.ndindex(batch, tokens - 1, heads, heads):
        if i != j:
            a, b = maps[image, i, query], maps[image, j, query]
            light = (2 * a.mean() * b.mean() + 1e-4) / (a.mean() ** 2 + b.mean() ** 2 + 1e-4)
            cov = np.cov(a, b, bias=True)
            found.append(light * (2 * cov[0, 1] + 9e-4) / (cov[0, 0] + cov[1, 1] + 9e-4))
    return float(np.mean(found)), float(np.mean(np.square(found)))


@pytest.mark.parametrize("batch_size", [2, 5])
def test_equals_timms_attention_in_numpy(batch_size: int) -> None:
    model = tiny_vit()
    expected: list[tuple[float, float]] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Attention)
        expected.append(slow_similarity_of_heads(module, inputs[0]))

    for block in model.blocks:
        block.attn.register_forward_pre_hook(watch)
    with torch.no_grad():
        model(PIXEL_SCALE.normalise(IMAGES.float() / 255))
    assert len(expected) == 2
    got = head_similarity_of_images(
        expose_attention(tiny_vit()), IMAGES, PIXEL_SCALE, batch_size=batch_size
    )
    assert (got.ssim, got.squared) == pytest.approx(tuple(np.mean(expected, axis=0)), abs=1e-4)
