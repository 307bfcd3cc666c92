"""Foldings leave the function as it is, for layers of any size and weights of any spread.

The functions before and after are written out in numpy in double precision, from the parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _helpers.calib_cases import PIXEL_SCALE, no_advance, pixels, quantization
from _helpers.tiny_students import images, tiny_vit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mimiq_calib.conversion.convert import expose_attention
from mimiq_calib.quantizers.learned_step import quantize_to_codes
from mimiq_calib.reparametrization.attention_centring import centre_keys_and_values
from mimiq_calib.reparametrization.norm_equalisation import equalise_norm
from mimiq_calib.reparametrization.reparametrize import reparametrize
from mimiq_calib.reparametrization.statistics import ChannelStatistics
from mimiq_calib.reparametrization.value_equalisation import equalise_values
from mimiq_runtime.grid import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

HEADS, HEAD_DIM = 2, 4
SIZE = HEADS * HEAD_DIM

seeds = st.integers(0, 2**16)
spreads = st.floats(0.0, 3.0)
bits = st.integers(2, 8)
quickly = settings(max_examples=30, deadline=None, derandomize=True)


def array(x: torch.Tensor) -> Array:
    return x.detach().double().numpy()


def uneven(shape: tuple[int, ...], spread: float, generator: torch.Generator) -> torch.Tensor:
    """Normal numbers; those of a channel (axis 0) have a size of their own, e^(+-spread)."""
    sizes = torch.exp(spread * torch.randn(shape[0], generator=generator))
    return torch.randn(shape, generator=generator) * sizes.view(-1, *[1] * (len(shape) - 1))


def statistics_of(x: Array) -> ChannelStatistics:
    statistics = ChannelStatistics()
    statistics.update(torch.from_numpy(x).float())
    return statistics


def assert_same(after: Array, before: Array, size: Array | float) -> None:
    """1e-5 of the sum of magnitudes that a result is made of: parameters are single precision."""
    assert (np.abs(after - before) <= 1e-5 * size).all(), np.abs((after - before) / size).max()


def grids(weight_bits: int, activation_bits: int) -> dict[str, Grid]:
    return {
        "weight_grid": Grid.signed(weight_bits),
        "activation_grid": Grid.signed(activation_bits),
    }


def layer_norm(norm: nn.LayerNorm, x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + norm.eps)
    return centred / deviation * array(norm.weight) + array(norm.bias)


def linear(layer: nn.Linear, x: Array) -> Array:
    return x @ array(layer.weight).T + array(layer.bias)


@quickly
@given(
    seed=seeds,
    channels=st.integers(2, 12),
    outputs=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    spread=spreads,
    widths=st.tuples(bits, bits),
)
def test_norm_equalisation(
    seed: int, channels: int, outputs: list[int], spread: float, widths: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    norm, layers = nn.LayerNorm(channels), [nn.Linear(channels, count) for count in outputs]
    norm.weight.data = uneven((channels,), spread, generator)
    norm.bias.data = uneven((channels,), spread, generator)
    for layer in layers:
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
        layer.bias.data = torch.randn(layer.bias.shape, generator=generator)
    x = array(torch.randn(40, channels, generator=generator))
    outputs_before = layer_norm(norm, x)
    before = [linear(layer, outputs_before) for layer in layers]
    # What a result is made of: the terms of the products, and the shift that is taken out again.
    largest = np.abs(outputs_before).max(axis=0)
    sizes = [
        1 + np.abs(array(layer.bias)) + 2 * np.abs(array(layer.weight)) @ largest
        for layer in layers
    ]
    with torch.no_grad():
        equalise_norm(norm, layers, statistics_of(outputs_before), **grids(*widths))
    for layer, expected, size in zip(layers, before, sizes, strict=True):
        assert_same(linear(layer, layer_norm(norm, x)), expected, size)


def assert_same_codes(folded: Array, before: Array, step: Array, shift: Array, grid: Grid) -> None:
    """One step for all of ``folded`` gives the codes that a grid for each channel gives.

    Args:
        folded: What the folded layer puts out, ``(rows, channels)``.
        before: What it put out before.
        step: Step of each channel's own grid, ``(channels,)``.
        shift: Middle of each channel's own grid.
        grid: The codes of all of them.
    """
    largest = float(np.abs(folded).max())
    scale = largest / grid.qmax
    codes = quantize_to_codes(torch.from_numpy(folded), torch.tensor(scale), grid).numpy()
    position = (before - shift) / (step * scale)
    expected = np.clip(np.rint(position), grid.qmin, grid.qmax)
    # Parameters are single precision; only what lies so near to the middle of two codes may turn.
    tied = np.abs(position - np.floor(position) - 0.5) < 1e-6 * (
        grid.qmax + np.abs(shift / step) / scale
    )
    assert ((codes == expected) | tied).all()
    assert tied.mean() < 0.05


@quickly
@given(seed=seeds, channels=st.integers(2, 12), spread=spreads, widths=st.tuples(bits, bits))
def test_a_folded_norm_has_the_codes_of_a_grid_for_each_channel(
    seed: int, channels: int, spread: float, widths: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    norm, layer = nn.LayerNorm(channels), nn.Linear(channels, 3)
    norm.weight.data = uneven((channels,), spread, generator)
    norm.bias.data = uneven((channels,), spread, generator)
    x = array(torch.randn(40, channels, generator=generator))
    before, weight, bias = layer_norm(norm, x), array(norm.weight), array(norm.bias)
    with torch.no_grad():
        equalise_norm(norm, [layer], statistics_of(before), **grids(*widths))
    factor = weight / array(norm.weight)
    shift = bias - array(norm.bias) * factor
    assert_same_codes(layer_norm(norm, x), before, factor, shift, Grid.signed(widths[1]))


@quickly
@given(seed=seeds, spread=spreads, widths=st.tuples(bits, bits))
def test_folded_values_have_the_codes_of_a_grid_for_each_channel(
    seed: int, spread: float, widths: tuple[int, int]
) -> None:
    module, x = attention(seed, spread / 2)
    _, before = attend(module, x)
    with torch.no_grad():
        equalise_values(module, statistics_of(before), **grids(*widths))
    _, after = attend(module, x)
    factor = array(module.head_unit).reshape(SIZE)
    rows = (after.reshape(-1, SIZE), before.reshape(-1, SIZE))
    assert_same_codes(*rows, factor, np.zeros(SIZE), Grid.signed(widths[1]))


def attention(seed: int, spread: float) -> tuple[Any, Array]:
    """The attention of a model with uneven queries, keys and values, and inputs for it."""
    generator = torch.Generator().manual_seed(seed)
    model = tiny_vit(embed_dim=SIZE, num_heads=HEADS, depth=1)
    exposed = expose_attention(model).blocks[0].attn
    exposed.qkv.weight.data = uneven((3 * SIZE, SIZE), spread, generator) / SIZE**0.5
    exposed.qkv.bias.data = uneven((3 * SIZE,), spread, generator)
    exposed.proj.weight.data = torch.randn(SIZE, SIZE, generator=generator)
    exposed.proj.bias.data = torch.randn(SIZE, generator=generator)
    return exposed, array(1 + torch.randn(3, 6, SIZE, generator=generator))


def attend(module: Any, x: Array) -> tuple[Array, Array]:
    """Attention, and what its projection takes in."""
    batch, tokens, _ = x.shape
    qkv = linear(module.qkv, x).reshape(batch, tokens, 3, HEADS, HEAD_DIM)
    query, key, value = qkv.transpose(2, 0, 3, 1, 4)
    logits = query @ key.transpose(0, 1, 3, 2) / HEAD_DIM**0.5
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    merged = (weights @ value).transpose(0, 2, 1, 3).reshape(batch, tokens, SIZE)
    return linear(module.proj, merged), merged


def attention_size(module: Any, x: Array) -> Array:
    """Magnitudes of each output, and how far logits of such a size move it when rounded."""
    _, merged = attend(module, x)
    qkv = np.abs(linear(module.qkv, x)).reshape(-1, 3, HEADS, HEAD_DIM).max(axis=0)
    logits = (qkv[0] * qkv[1]).sum(axis=-1).max()
    values = np.maximum(np.abs(merged).max(axis=(0, 1)), qkv[2].reshape(-1))
    return 1 + (1 + logits) * 2 * np.abs(array(module.proj.weight)) @ values


@quickly
@given(seed=seeds, spread=st.floats(0.0, 1.5))
def test_attention_centring(seed: int, spread: float) -> None:
    module, x = attention(seed, spread)
    before, _ = attend(module, x)
    size = attention_size(module, x)
    with torch.no_grad():
        centre_keys_and_values(module, statistics_of(x))
    assert_same(attend(module, x)[0], before, size)
    means = linear(module.qkv, x).mean(axis=(0, 1))[SIZE:]
    assert np.abs(means).max() <= 1e-4 * np.abs(linear(module.qkv, x)).max() + 1e-5


@quickly
@given(seed=seeds, spread=spreads, widths=st.tuples(bits, bits))
def test_value_equalisation(seed: int, spread: float, widths: tuple[int, int]) -> None:
    module, x = attention(seed, spread / 2)
    before, merged = attend(module, x)
    size = attention_size(module, x)
    with torch.no_grad():
        strength = equalise_values(module, statistics_of(merged), **grids(*widths))
    assert strength is not None
    assert_same(attend(module, x)[0], before, size)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=seeds,
    spread=st.floats(0.0, 1.0),
    widths=st.tuples(bits, bits),
    shape=st.sampled_from([(2, 8), (3, 4), (1, 16)]),
    arguments=st.sampled_from([{}, {"reg_tokens": 2}, {"init_values": 0.5}, {"qkv_bias": False}]),
)
def test_all_of_them_on_random_models(
    seed: int,
    spread: float,
    widths: tuple[int, int],
    shape: tuple[int, int],
    arguments: dict[str, Any],
) -> None:
    heads, head_dim = shape
    timm_model = tiny_vit(embed_dim=heads * head_dim, num_heads=heads, **dict(arguments))
    model = expose_attention(timm_model)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data *= uneven((len(module.weight),), spread, generator)
    with torch.no_grad():
        before = model(images(3))
        reparametrize(
            model, quantization(*widths), pixels(4), PIXEL_SCALE, batch_size=4, advance=no_advance
        )
        after = model(images(3))
    # 1e-5 of the logits' size, and rounding of a model of uneven channels in single precision.
    torch.testing.assert_close(
        after, before, rtol=0.0, atol=1e-5 * float(before.abs().max()) * (1 + 10 * spread)
    )
