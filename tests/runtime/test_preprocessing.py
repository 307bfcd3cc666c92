"""The independent reference is timm's own evaluation transform, on torchvision and torch."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform, resolve_data_config

from mimiq_runtime.errors import ImageError, InvalidInputError
from mimiq_runtime.input_form import InputForm
from mimiq_runtime.manifest import Preprocessing
from mimiq_runtime.preprocessing import (
    denormalise,
    model_input,
    normalise,
    preprocess_files,
    preprocess_image,
    read_pixels,
)

if TYPE_CHECKING:
    from pathlib import Path

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GRAY = {"mean": (0.1307,), "std": (0.3081,)}


def picture(width: int, height: int, channels: int = 3) -> Image.Image:
    seed = zlib.crc32(f"{width} {height}".encode())
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def by_timm(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray[Any, Any]:
    config = resolve_data_config(args=preprocessing.model_dump())
    return create_transform(**config, is_training=False)(image).numpy()


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.875, 0.95, 0.37])
@pytest.mark.parametrize("side", [32, 33, 224], ids="side{}".format)
@pytest.mark.parametrize(
    "size",
    [(64, 64), (97, 61), (61, 97), (20, 30), (37, 36), (224, 224), (255, 256), (3, 5), (500, 13)],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
def test_equals_timm(size: tuple[int, int], side: int, crop_pct: float, crop_mode: str) -> None:
    preprocessing = Preprocessing(
        input_size=(3, side, side), crop_pct=crop_pct, crop_mode=crop_mode, **IMAGENET
    )
    image = picture(*size)
    got = preprocess_image(image, preprocessing)
    assert (got.shape, got.dtype) == ((3, side, side), np.float32)
    np.testing.assert_allclose(got, by_timm(image, preprocessing), rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(97, 61), (19, 33)], ids=["shrink", "grow"])
def test_filters_equal_timm(size: tuple[int, int], interpolation: str) -> None:
    preprocessing = Preprocessing(input_size=(3, 40, 40), interpolation=interpolation, **IMAGENET)
    image = picture(*size)
    expected = by_timm(image, preprocessing)
    np.testing.assert_allclose(preprocess_image(image, preprocessing), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 33), (31, 64)])
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (21, 20), (150, 40)])
def test_oblong_inputs_equal_timm(
    size: tuple[int, int], height: int, width: int, crop_mode: str
) -> None:
    preprocessing = Preprocessing(
        input_size=(3, height, width), crop_pct=0.9, crop_mode=crop_mode, **IMAGENET
    )
    image = picture(*size)
    expected = by_timm(image, preprocessing)
    np.testing.assert_allclose(preprocess_image(image, preprocessing), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(28, 28), (50, 31), (9, 14)])
def test_one_channel_equals_timm(size: tuple[int, int]) -> None:
    preprocessing = Preprocessing(input_size=(1, 28, 28), **GRAY)
    image = picture(*size, channels=1)
    got = preprocess_image(image, preprocessing)
    assert got.shape == (1, 28, 28)
    np.testing.assert_allclose(got, by_timm(image, preprocessing), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (8, 13), (11, 12), (15, 20)])
def test_crop_larger_than_the_resized_picture_pads_as_torchvision(size: tuple[int, int]) -> None:
    """No configuration of timm with crop_pct <= 1 gets here, so the crop is tested alone."""
    from torchvision.transforms.functional import center_crop

    from mimiq_runtime.preprocessing import _crop_start

    image = picture(*size)
    left, top = _crop_start(size[0], 11), _crop_start(size[1], 12)
    got = image.crop((left, top, left + 11, top + 12))
    np.testing.assert_array_equal(np.asarray(got), np.asarray(center_crop(image, [12, 11])))


def test_files_are_stacked_in_order(tmp_path: Path) -> None:
    preprocessing = Preprocessing(input_size=(3, 16, 16), **IMAGENET)
    paths = [tmp_path / f"{name}.png" for name in "cab"]
    pictures = [picture(20 + 3 * index, 24) for index in range(3)]
    for path, image in zip(paths, pictures, strict=True):
        image.save(path)
    got = preprocess_files(paths, preprocessing)
    expected = np.stack([by_timm(image, preprocessing) for image in pictures])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    assert preprocess_files([], preprocessing).shape == (0, 3, 16, 16)


def test_picture_of_another_mode_is_refused() -> None:
    preprocessing = Preprocessing(input_size=(3, 8, 8), **IMAGENET)
    with pytest.raises(InvalidInputError, match="mode RGB; got L"):
        preprocess_image(picture(8, 8, channels=1), preprocessing)


def test_a_hairline_picture_cannot_exhaust_the_memory(tmp_path: Path) -> None:
    preprocessing = Preprocessing(input_size=(3, 224, 224), **IMAGENET)
    picture(1, 60_000).save(tmp_path / "thin.png")
    with pytest.raises(ImageError, match=r"thin\.png: .* 1 x 60000 pixels is too narrow"):
        preprocess_files([tmp_path / "thin.png"], preprocessing)


def test_normalise_by_hand() -> None:
    preprocessing = Preprocessing(input_size=(1, 1, 3), mean=(0.5,), std=(0.25,))
    pixels = np.array([[[[0, 51, 255]]]], dtype=np.uint8)
    np.testing.assert_allclose(
        normalise(pixels, preprocessing), [[[[-2.0, -1.2, 2.0]]]], rtol=0, atol=1e-6
    )


def test_a_model_gets_the_form_it_takes(tmp_path: Path) -> None:
    """Pixels as Pillow gives them, for a picture that needs no resizing."""
    preprocessing = Preprocessing(input_size=(3, 16, 24), crop_pct=1.0, **IMAGENET)
    image = picture(24, 16)
    image.save(tmp_path / "a.png")
    read = read_pixels([tmp_path / "a.png"], preprocessing)
    pixels = model_input(read, preprocessing, InputForm.PIXELS)
    np.testing.assert_array_equal(pixels, np.asarray(image)[np.newaxis])
    assert (pixels.dtype, pixels.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(
        model_input(read, preprocessing, InputForm.NORMALISED),
        preprocess_files([tmp_path / "a.png"], preprocessing),
    )


def test_denormalise_undoes_normalise_exactly() -> None:
    preprocessing = Preprocessing(input_size=(3, 16, 16), **IMAGENET)
    pixels = np.arange(3 * 256, dtype=np.uint16).astype(np.uint8).reshape(1, 3, 16, 16)
    back = denormalise(normalise(pixels, preprocessing), preprocessing)
    assert (back.shape, back.dtype) == ((1, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(back, pixels.transpose(0, 2, 3, 1))


def test_denormalise_cuts_and_rounds() -> None:
    preprocessing = Preprocessing(input_size=(1, 1, 4), mean=(0.5,), std=(0.5,))
    values = np.array([[[[-9.0, 9.0, np.inf, 2 * 100.6 / 255 - 1]]]], dtype=np.float32)
    np.testing.assert_array_equal(
        denormalise(values, preprocessing).ravel(), np.array([0, 255, 255, 101])
    )
    with pytest.raises(InvalidInputError, match="NaN"):
        denormalise(np.full((1, 1, 1, 4), np.nan, dtype=np.float32), preprocessing)


@pytest.mark.parametrize(
    ("pixels", "changes", "expected"),
    [
        (np.zeros((1, 3, 4, 4), np.float32), {}, "uint8"),
        (np.zeros((1, 1, 4, 4), np.uint8), {}, r"\(N, 3, H, W\)"),
        (np.zeros((3, 4, 4), np.uint8), {}, r"\(N, 3, H, W\)"),
        (np.zeros((1, 3, 4, 4), np.uint8), {"mean": (0.5,)}, "each of 3 channels; got 1 and 3"),
        (np.zeros((1, 3, 4, 4), np.uint8), {"std": (0.5, 0.0, 0.5)}, "must be positive"),
    ],
    ids=["dtype", "channels", "rank", "means", "zero std"],
)
def test_normalise_refuses(pixels: Any, changes: dict[str, Any], expected: str) -> None:
    preprocessing = Preprocessing.model_construct(
        **{"input_size": (3, 4, 4), **IMAGENET, **changes}
    )
    with pytest.raises(InvalidInputError, match=expected):
        normalise(pixels, preprocessing)
    if not changes:
        with pytest.raises(InvalidInputError, match=expected):
            model_input(pixels, preprocessing, InputForm.PIXELS)
