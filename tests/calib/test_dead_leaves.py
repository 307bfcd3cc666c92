from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from mimiq_calib.synthesis.dead_leaves import (
    _radii,
    _shape,
    _texture,
    dead_leaves,
    interleaved,
)


@pytest.mark.parametrize("size", [(3, 32, 32), (1, 32, 32), (4, 24, 40)], ids=str)
def test_pictures_of_the_models_input(size: tuple[int, int, int]) -> None:
    pictures = dead_leaves(3, size, seed=1)
    assert pictures.shape == (3, *size)
    assert pictures.dtype == torch.uint8
    for picture in pictures:
        assert picture.float().std() > 10, "something is on it"


def test_each_depends_on_the_seed_and_its_number_only() -> None:
    torch.rand(3)
    five, two = dead_leaves(5, (3, 24, 24), seed=1), dead_leaves(2, (3, 24, 24), seed=1)
    assert torch.equal(five[:2], two)
    assert not torch.equal(five[0], five[1])
    assert not torch.equal(dead_leaves(1, (3, 24, 24), seed=2), two[:1])
    assert dead_leaves(0, (3, 24, 24), seed=1).shape == (0, 3, 24, 24)


def test_each_is_told_of() -> None:
    told: list[int] = []
    dead_leaves(3, (1, 16, 16), seed=1, on_picture=told.append)
    assert told == [0, 1, 2]


def test_radii_have_the_density_of_the_inverse_cube() -> None:
    radii = _radii(4000, 100, np.random.default_rng(0))
    low, high = 2.0, 60.0

    def distribution(r: np.ndarray) -> np.ndarray:
        """The integral of r^-3 from the smallest radius, divided by that to the largest."""
        return (low**-2 - r**-2) / (low**-2 - high**-2)

    assert kstest(radii, distribution).pvalue > 0.01
    assert low <= radii.min() <= radii.max() <= high


def test_textures_fall_with_the_frequency() -> None:
    generator = np.random.default_rng(0)
    slopes = []
    for _ in range(20):
        texture = _texture((3, 128, 128), generator)
        assert texture.std() == pytest.approx(1)
        assert np.abs(texture.mean(axis=(1, 2))).max() < 1e-9
        power = np.square(np.abs(np.fft.fft2(texture))).mean(axis=0)
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
        inside = (frequency > 0.05) & (frequency < 0.4)
        slope, _ = np.polyfit(np.log(frequency[inside]), np.log(power[inside]), 1)
        slopes.append(-slope / 2)
    assert 0.65 < min(slopes) < 0.95, "amplitude: half the slope of the power"
    assert 1.3 < max(slopes) < 1.65


def test_shapes_are_whole_within_their_frame() -> None:
    """The frame that is drawn in cuts nothing off: a mask never reaches its border inside."""
    generator = np.random.default_rng(0)
    areas = []
    for _ in range(300):
        rows, columns, mask = _shape(10.0, 200, 200, generator)
        assert mask.shape == (rows.stop - rows.start, columns.stop - columns.start)
        borders = [
            (rows.start > 0, mask[0]),
            (rows.stop < 200, mask[-1]),
            (columns.start > 0, mask[:, 0]),
            (columns.stop < 200, mask[:, -1]),
        ]
        assert not any(line.any() for inside, line in borders if inside)
        if all(inside for inside, _ in borders):
            areas.append(mask.sum())
    # Between the flattest triangle, 1.125 * 0.3 radii squared, and the whole disc.
    assert 0.25 * 100 < min(areas) < max(areas) <= 1.02 * np.pi * 100


@pytest.mark.parametrize(("first", "second"), [(4, 4), (6, 2), (3, 0), (1, 5), (7, 3)])
def test_interleaved(first: int, second: int) -> None:
    mixed = interleaved(torch.arange(first), 100 + torch.arange(second)).tolist()
    places = [((i + 0.5) / first, 0, i) for i in range(first)]
    places += [((i + 0.5) / second, 1, 100 + i) for i in range(second)]
    assert mixed == [value for *_, value in sorted(places)]
    for length in range(1, first + second + 1):
        front = sum(value < 100 for value in mixed[:length])
        assert abs(front - length * first / (first + second)) <= 1, "in proportion from the front"
