from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mimiq_calib.synthesis.augmentation import DiagonalRoll, SynthesisAugmentation


def augmentation(
    *, seed: int = 0, iterations: int = 100, jitter: int | None = 2, flip: bool = False
) -> SynthesisAugmentation:
    generator = torch.Generator().manual_seed(seed)
    return SynthesisAugmentation(
        (16, 24), iterations, jitter=jitter, flip=flip, generator=generator
    )


def ramp() -> torch.Tensor:
    """Each pixel of a channel has a value of its own, so that places can be told."""
    return torch.arange(2 * 3 * 16 * 24, dtype=torch.float64).view(2, 3, 16, 24) / 100


def shift_of(before: torch.Tensor, after: torch.Tensor) -> tuple[int, int]:
    """By how much a channel was rolled, whatever was done to its offset and contrast."""
    row, column = np.unravel_index(int(after[0, 0].argmin()), (16, 24))
    assert int(before[0, 0].argmin()) == 0
    centred = [
        (int(place) + size // 2) % size - size // 2 for place, size in ((row, 16), (column, 24))
    ]
    return centred[0], centred[1]


def slow_roll(image: np.ndarray, down: int, right: int) -> np.ndarray:
    result = np.empty_like(image)
    height, width = image.shape[-2:]
    for row, column in np.ndindex(height, width):
        result[..., (row + down) % height, (column + right) % width] = image[..., row, column]
    return result


@pytest.mark.parametrize("flip", [False, True])
def test_is_a_roll_a_mirror_and_an_affine_map_a_channel(flip: bool) -> None:
    augment, images = augmentation(flip=flip), ramp()
    mirrored = 0
    for _ in range(12):
        after = augment(images, step=10)
        assert after.shape == images.shape
        # Undo the mirror, if any, by the one candidate that fits.
        for candidate in (after, after.flip(-1)) if flip else (after,):
            down, right = shift_of(images, candidate)
            rolled = slow_roll(images.numpy(), down, right)
            flat, target = rolled.reshape(6, -1), candidate.numpy().reshape(6, -1)
            fits = [np.polyfit(a, b, 1) for a, b in zip(flat, target, strict=True)]
            lines = np.stack([np.polyval(fit, a) for fit, a in zip(fits, flat, strict=True)])
            if np.allclose(lines, target, atol=1e-4):
                mirrored += candidate is not after
                break
        else:
            pytest.fail("not a roll")
        slopes = np.array([fit[0] for fit in fits])
        # Contrast 1 / exp(U(-1, 1)), of each image and channel its own.
        assert (slopes >= math.exp(-1)).all()
        assert (slopes <= math.exp(1)).all()
        assert len(set(slopes.round(6))) == 6
    assert (0 < mirrored < 12) == flip


@pytest.mark.parametrize(("step", "limit"), [(0, 2), (49, 2), (50, 4), (99, 4)])
def test_shift_doubles_half_way(step: int, limit: int) -> None:
    augment, images = augmentation(), ramp()
    shifts = np.array([shift_of(images, augment(images, step)) for _ in range(150)])
    # All of -limit..limit, in both directions and independently.
    assert set(shifts[:, 0].tolist()) == set(range(-limit, limit + 1))
    assert set(shifts[:, 1].tolist()) == set(range(-limit, limit + 1))
    assert (shifts[:, 0] != shifts[:, 1]).any()


def test_default_shift_is_the_papers_at_224() -> None:
    def largest(size: tuple[int, int]) -> int:
        generator = torch.Generator().manual_seed(0)
        augment = SynthesisAugmentation(size, 10, jitter=None, flip=False, generator=generator)
        image = torch.zeros(1, 1, *size)
        image[0, 0, 0, 0] = 1000.0
        rows = [int(augment(image, 0)[0, 0].argmax()) // size[1] for _ in range(400)]
        return max(min(row, size[0] - row) for row in rows)

    assert largest((224, 224)) == 8
    assert largest((112, 224)) == 4
    assert largest((16, 16)) == 1


def test_no_shift_when_asked_for_none() -> None:
    augment, images = augmentation(jitter=0), ramp()
    assert {shift_of(images, augment(images, 99)) for _ in range(20)} == {(0, 0)}


def offsets(step: int) -> np.ndarray:
    """What is added before the contrast: offset minus mean, by images of 0 and of 1."""
    added = []
    for seed in range(200):
        zero = augmentation(seed=seed, jitter=0)(torch.zeros(4, 3, 16, 24), step)
        one = augmentation(seed=seed, jitter=0)(torch.ones(4, 3, 16, 24), step)
        added.append((zero / (one - zero))[..., 0, 0].numpy())
    return np.stack(added).ravel()


def test_offset_fades() -> None:
    """A normal of 0.5, fading to nothing, less a uniform of -1..1: variances 1/4 and 1/3."""
    assert offsets(0).var() == pytest.approx(1 / 4 + 1 / 3, rel=0.1)
    assert offsets(50).var() == pytest.approx(1 / 16 + 1 / 3, rel=0.1)
    last = offsets(99)
    assert last.var() == pytest.approx(1 / 3, rel=0.1)
    assert np.abs(last).max() < 1.05, "but for a hundredth of a normal it is within -1..1"


@pytest.mark.parametrize("step", [0, 3, 49, 50, 99])
def test_equals_slow_loops_with_the_same_draws(step: int) -> None:
    """Shift, mirror, offset, mean and contrast, written out one channel at a time."""
    images = ramp()
    got = augmentation(seed=8, flip=True)(images, step).numpy()
    generator = torch.Generator().manual_seed(8)
    limit = 2 if step < 50 else 4
    down, right = torch.randint(-limit, limit + 1, (2,), generator=generator).tolist()
    expected = slow_roll(images.numpy(), down, right)
    if torch.rand(1, generator=generator).item() < 0.5:
        expected = expected[..., ::-1].copy()
    draws = (2, 3, 1, 1)
    normal = torch.randn(draws, generator=generator).double().numpy()
    uniform_mean = torch.rand(draws, generator=generator).double().numpy()
    uniform_contrast = torch.rand(draws, generator=generator).double().numpy()
    for image, channel in np.ndindex(2, 3):
        at = (image, channel, 0, 0)
        offset = normal[at] * 0.5 * (100 - step) / 100
        mean, spread = 2 * uniform_mean[at] - 1, math.exp(2 * uniform_contrast[at] - 1)
        expected[image, channel] = (expected[image, channel] + offset - mean) / spread
    # Draws are in single precision.
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_same_generator_same_change() -> None:
    images = ramp()
    first, second, other = (augmentation(seed=seed, flip=True) for seed in (4, 4, 5))
    for step in range(3):
        expected = first(images, step)
        assert torch.equal(second(images, step), expected)
        assert not torch.equal(other(images, step), expected)


def test_global_randomness_is_left_alone() -> None:
    state = torch.get_rng_state()
    augmentation(flip=True)(ramp(), 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_flows_to_every_pixel() -> None:
    images = ramp().requires_grad_()
    augmentation()(images, 0).sum().backward()
    assert images.grad is not None
    assert (images.grad > 0).all()


class TestDiagonalRoll:
    def roll(self, *, seed: int = 0, jitter: int | None = 3, flip: bool = False) -> DiagonalRoll:
        generator = torch.Generator().manual_seed(seed)
        return DiagonalRoll((16, 24), 10, jitter=jitter, flip=flip, generator=generator)

    @pytest.mark.parametrize(("step", "limit"), [(0, 3), (9, 3), (10, 6), (19, 6)])
    def test_rolls_by_the_same_number_both_ways_and_twice_as_far_later(
        self, step: int, limit: int
    ) -> None:
        roll, images = self.roll(), ramp()
        seen = set()
        for _ in range(150):
            after = roll(images, step)
            down, right = shift_of(images, after)
            assert down == right
            np.testing.assert_array_equal(after.numpy(), slow_roll(images.numpy(), down, right))
            seen.add(down)
        assert seen == set(range(-limit, limit + 1))

    def test_mirrors_about_half_of_the_time(self) -> None:
        roll, images = self.roll(jitter=0, flip=True), ramp()
        mirrored = 0
        for _ in range(60):
            after = roll(images, 0)
            mirrored += torch.equal(after, images.flip(-1))
            assert torch.equal(after, images.flip(-1)) or torch.equal(after, images)
        assert 15 < mirrored < 45
        assert torch.equal(self.roll(jitter=0)(images, 0), images)

    def test_default_shift_is_the_papers_at_224(self) -> None:
        generator = torch.Generator().manual_seed(0)
        roll = DiagonalRoll((224, 224), 10, jitter=None, flip=False, generator=generator)
        image = torch.zeros(1, 1, 224, 224)
        image[0, 0, 0, 0] = 1.0
        rows = [int(roll(image, 0)[0, 0].argmax()) // 224 for _ in range(400)]
        assert max(min(row, 224 - row) for row in rows) == 15

    def test_gradient_flows_and_global_randomness_is_left_alone(self) -> None:
        state, images = torch.get_rng_state(), ramp().requires_grad_()
        self.roll(flip=True)(images, 0).sum().backward()
        assert torch.equal(torch.get_rng_state(), state)
        assert images.grad is not None
        assert (images.grad == 1).all()
