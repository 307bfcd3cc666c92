from __future__ import annotations

import pytest
import torch
from _helpers.calib_cases import pixels

from mimiq_calib.distillation.augmentation import augment_images, make_augmentation
from mimiq_calib.recipe import AugmentationSettings

NOTHING = {"smallest_crop": 1.0, "flip": False, "colour": 0.0, "grayscale": 0.0, "blur": 0.0}


def settings(**others: float | bool) -> AugmentationSettings:
    return AugmentationSettings(**(NOTHING | others))


def unit(count: int = 6, *, channels: int = 3, size: int = 32) -> torch.Tensor:
    return pixels(count, channels=channels, size=size).float() / 255


def augmented(chosen: AugmentationSettings, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    seeds = range(1000 * seed, 1000 * seed + len(images))
    return augment_images(images, make_augmentation(chosen, tuple(images.shape[1:])), seeds)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("size", [8, 32, 224])
def test_size_range_and_determinism(channels: int, size: int) -> None:
    images = unit(3, channels=channels, size=size)
    chosen = AugmentationSettings(colour=1.0, blur=1.0, grayscale=0.5)
    first = augmented(chosen, images, seed=1)
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert first.min() >= -1e-6
    assert first.max() <= 1 + 1e-6
    assert torch.equal(first, augmented(chosen, images, seed=1))
    assert not torch.equal(first, augmented(chosen, images, seed=2))


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_are_no_colours_keep_their_values(channels: int) -> None:
    images = unit(channels=channels)
    assert torch.equal(augmented(settings(colour=1.0, grayscale=1.0), images), images)


def test_disabled_changes_nothing() -> None:
    images = unit()
    assert torch.equal(augmented(AugmentationSettings(enabled=False), images), images)


def test_each_image_is_changed_on_its_own() -> None:
    same = unit(1).expand(8, -1, -1, -1)
    after = augmented(AugmentationSettings(), same)
    assert len({image.sum().item() for image in after}) > 4


def test_an_image_is_changed_by_its_seed_alone() -> None:
    images, change = unit(6), make_augmentation(AugmentationSettings(), (3, 32, 32))
    together = augment_images(images, change, range(6))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    apart = [augment_images(images[n : n + 1], change, [n]) for n in reversed(range(6))]
    assert torch.equal(torch.cat(apart[::-1]), together)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = unit(40)
    after = augmented(settings(flip=True), images)
    kinds = [
        "mirrored" if torch.allclose(a, b.flip(-1)) else "same" if torch.allclose(a, b) else "?"
        for a, b in zip(after, images, strict=True)
    ]
    assert "?" not in kinds
    assert 10 < kinds.count("mirrored") < 30
    assert torch.allclose(augmented(settings(), images), images), "without flip: nothing at all"


def test_grayscale_has_equal_channels() -> None:
    after = augmented(settings(grayscale=1.0), unit())
    assert torch.allclose(after[:, 0], after[:, 1])
    assert torch.allclose(after[:, 0], after[:, 2])


def test_blur_smooths() -> None:
    noise = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    after = augmented(settings(blur=1.0), noise)
    assert (after.std(dim=(1, 2, 3)) < noise.std(dim=(1, 2, 3))).all()
    # Away from the reflected border the mean of a picture stays.
    torch.testing.assert_close(after.mean(), noise.mean(), rtol=0.0, atol=0.02)


def test_colour_changes_without_moving_anything() -> None:
    images = unit()
    after = augmented(settings(colour=1.0), images)
    assert not torch.allclose(after, images)
    assert torch.allclose(augmented(settings(colour=0.0), images), images)


def test_crop_keeps_at_least_the_smallest_share() -> None:
    """A ramp from left to right is cut to a part of it: its range tells the share of the width."""
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64).expand(60, -1, -1, -1)

    def ranges(share: float) -> torch.Tensor:
        after = augmented(settings(smallest_crop=share), ramp)
        return after.amax(dim=(1, 2, 3)) - after.amin(dim=(1, 2, 3))

    # A crop of 60 % of the area, up to 4:3 wide, is at least sqrt(0.6 * 3/4) = 67 % wide.
    assert ranges(0.6).min() > 0.6
    assert ranges(0.08).min() < 0.45
