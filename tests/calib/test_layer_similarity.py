"""Losses over whole models against slow loops that know where each token comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from _helpers.ssim import C2, ssim
from _helpers.swin_windows import neighbours, window_origins
from _helpers.tiny_students import images, tiny_swin, tiny_vit
from torch import nn

from mimiq_calib.conversion.convert import expose_attention
from mimiq_calib.distillation.losses import structural_attention_loss
from mimiq_calib.synthesis.head_similarity import inter_head_loss, mean_head_similarity
from mimiq_calib.synthesis.layer_similarity import layer_patch_similarities, layer_similarities
from mimiq_calib.taps import attention_taps


@torch.no_grad()
def similarities(model: nn.Module) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    with attention_taps(model, "logits") as taps:
        model(images(2))
        logits = list(taps)
    return layer_similarities(model, logits), [layer.double().numpy() for layer in logits]


def pairs_of_heads(maps: np.ndarray) -> list[float]:
    """SSIM of every ordered pair of ``(heads, keys)``."""
    heads = range(len(maps))
    return [ssim(maps[i], maps[j]) for i in heads for j in heads]


SWINS = [
    {},
    {"window_size": 3, "depths": (1, 1)},  # pads, without a shift
    {"window_size": ((2, 4), (4, 2))},
]


@pytest.mark.parametrize("arguments", SWINS, ids=["shifted", "padded", "by-stage"])
def test_windows_by_places_and_neighbours(arguments: dict[str, Any]) -> None:
    model = expose_attention(tiny_swin(**arguments))
    got, logits = similarities(model)
    blocks = [block for stage in model.layers for block in stage.blocks]
    assert len(got) == len(blocks) == len(logits)
    for block, similarity, tap in zip(blocks, got, logits, strict=True):
        windows = window_origins(block.input_resolution, block.window_size, block.shift_size)
        assert len(tap) == 2 * len(windows)
        expected = [
            pairs_of_heads(tap[entry, :, query, neighbours(tokens, block.window_size)[query]].T)
            for entry in range(len(tap))
            for tokens in [windows[entry % len(windows)]]
            for query in np.flatnonzero(tokens[:, 0] >= 0)
        ]
        # All queries that are places, all windows, all images count once.
        places = int((windows[..., 0] >= 0).sum())
        flat = similarity.flatten(end_dim=-3).flatten(start_dim=1)
        assert len(flat) == 2 * places
        np.testing.assert_allclose(flat.numpy(), expected, atol=2e-5)
        loss = float(inter_head_loss(similarity))
        assert loss == pytest.approx(np.mean(1 - np.square(expected)), abs=1e-5)
        assert -1 <= float(mean_head_similarity(similarity)) < 1


def test_masked_keys_would_change_the_figure() -> None:
    model = expose_attention(tiny_swin())
    exact = float(inter_head_loss(similarities(model)[0][1]))
    model.layers[0].blocks[1].attn.visible = None
    assert abs(float(inter_head_loss(similarities(model)[0][1])) - exact) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "prefix"),
    [
        ({}, 1),
        ({"name": "deit_tiny_distilled_patch16_224"}, 2),
        ({"reg_tokens": 3}, 4),
        ({"class_token": False, "global_pool": "avg"}, 0),
        ({"img_size": (32, 16)}, 1),
    ],
    ids=["class", "distilled", "registers", "none", "oblong"],
)
def test_prefix_tokens_are_no_places(arguments: dict[str, Any], prefix: int) -> None:
    model = expose_attention(tiny_vit(**dict(arguments)))
    size = arguments.get("img_size", (32, 32))
    with torch.no_grad(), attention_taps(model, "logits") as taps:
        model(images(1)[..., : size[0], : size[1]])
        logits = list(taps)
    for similarity, tap in zip(layer_similarities(model, logits), logits, strict=True):
        maps = tap[0].double().numpy()[:, prefix:, prefix:]
        expected = [pairs_of_heads(maps[:, query]) for query in range(maps.shape[1])]
        assert maps.shape[1] == size[0] * size[1] // 64
        got = similarity.flatten(end_dim=-3).flatten(start_dim=1)
        np.testing.assert_allclose(got.numpy(), expected, atol=2e-5)


def test_structural_loss_compares_window_by_window() -> None:
    """Each window's positions are one map, and every layer has the same weight."""
    teacher = expose_attention(tiny_swin())
    student = expose_attention(tiny_swin())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn_like(parameter) * parameter.std()
    heads = []
    for model in (student, teacher):
        with torch.no_grad(), attention_taps(model, "head_outputs") as taps:
            model(images(2))
            heads.append(list(taps))
    layers = []
    for ours, theirs in zip(*heads, strict=True):
        q, t = ours.double().numpy(), theirs.double().numpy()
        distances = []
        for entry, head, channel in np.ndindex(q.shape[0], q.shape[1], q.shape[3]):
            a, b = q[entry, head, :, channel], t[entry, head, :, channel]
            covariance = np.cov(a, b, bias=True)[0, 1]
            distances.append(1 - (2 * covariance + C2) / (a.var() + b.var() + C2))
        layers.append(np.mean(distances))
    got = float(structural_attention_loss(*heads, prefix_tokens=0))
    assert got == pytest.approx(np.mean(layers), rel=1e-5)
    assert got > 0.01


@pytest.mark.parametrize(
    "arguments", [{}, {"window_size": 3, "depths": (1, 1)}], ids=["shifted", "padded"]
)
def test_patches_of_a_window_are_compared_and_pads_are_not(arguments: dict[str, Any]) -> None:
    model = expose_attention(tiny_swin(**arguments))
    with torch.no_grad(), attention_taps(model, "head_outputs") as taps:
        model(images(2))
        outputs = list(taps)
    got = layer_patch_similarities(model, outputs, 2)
    blocks = [block for stage in model.layers for block in stage.blocks]
    for block, similarities, tap in zip(blocks, got, outputs, strict=True):
        windows = window_origins(block.input_resolution, block.window_size, block.shift_size)
        mean_heads = tap.double().numpy().mean(axis=1).reshape(2, *windows.shape[:2], -1)
        expected = []
        for image in mean_heads:
            pairs = []
            for patches, origins in zip(image, windows, strict=True):
                real = patches[origins[:, 0] >= 0]
                real = real / np.linalg.norm(real, axis=-1, keepdims=True)
                pairs.append((real @ real.T).ravel())
            expected.append(np.concatenate(pairs))
        np.testing.assert_allclose(similarities.numpy(), np.stack(expected), atol=1e-5)
