from __future__ import annotations

import numpy as np
import pytest
import torch
from _helpers.calib_cases import CPU, PIXEL_SCALE, PREPROCESSING, pixels

from mimiq_calib.pixels import PixelScale
from mimiq_runtime.manifest import Preprocessing
from mimiq_runtime.preprocessing import normalise


def test_normalises_as_the_runtime_does() -> None:
    images = pixels(2)
    expected = normalise(images.numpy(), PREPROCESSING)
    got = PIXEL_SCALE.normalise(PIXEL_SCALE.to_unit(images))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_every_pixel_comes_back() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    back = PIXEL_SCALE.to_pixels(PIXEL_SCALE.normalise(PIXEL_SCALE.to_unit(every)))
    assert back.dtype == torch.uint8
    assert torch.equal(back, every)


def test_ends_are_black_and_white() -> None:
    assert not PIXEL_SCALE.to_pixels(PIXEL_SCALE.low).any()
    assert (PIXEL_SCALE.to_pixels(PIXEL_SCALE.high) == 255).all()
    mean, std = np.array(PREPROCESSING.mean), np.array(PREPROCESSING.std)
    np.testing.assert_allclose(PIXEL_SCALE.low.flatten(), -mean / std, rtol=1e-6)
    np.testing.assert_allclose(PIXEL_SCALE.high.flatten(), (1 - mean) / std, rtol=1e-6)


def test_clamping_is_in_place_and_by_channel() -> None:
    images = torch.tensor([-100.0, 100.0, 0.0]).view(1, 1, 1, 3).repeat(2, 3, 1, 1)
    assert PIXEL_SCALE.clamp_(images) is images
    for channel in range(3):
        low, high = (float(end[channel]) for end in (PIXEL_SCALE.low, PIXEL_SCALE.high))
        assert images[1, channel, 0].tolist() == [low, high, 0.0]


def test_values_beyond_the_range_saturate() -> None:
    beyond = torch.tensor([-1e9, 1e9, -torch.inf, torch.inf]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    assert PIXEL_SCALE.to_pixels(beyond)[0, 1, 0].tolist() == [0, 255, 0, 255]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_become_pixels(dtype: torch.dtype) -> None:
    images = PIXEL_SCALE.normalise(PIXEL_SCALE.to_unit(pixels(1))).to(dtype)
    difference = PIXEL_SCALE.to_pixels(images).int() - pixels(1).int()
    assert difference.abs().max() <= (2 if dtype is torch.bfloat16 else 0)


def test_one_channel() -> None:
    scale = PixelScale(Preprocessing(input_size=(1, 4, 4), mean=(0.25,), std=(0.5,)), CPU)
    black = scale.normalise(scale.to_unit(torch.zeros(1, 1, 4, 4, dtype=torch.uint8)))
    assert black.unique().tolist() == [-0.5]
