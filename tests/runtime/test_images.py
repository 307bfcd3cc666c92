from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from mimiq_runtime import images
from mimiq_runtime.errors import ImageError, InvalidInputError
from mimiq_runtime.images import IMAGE_SUFFIXES, load_image

if TYPE_CHECKING:
    from pathlib import Path


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_rgb_png_comes_back_pixel_by_pixel(tmp_path: Path) -> None:
    pixels = noise((5, 7, 3))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png", channels=3)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels)


def test_colour_becomes_luma_for_one_channel(tmp_path: Path) -> None:
    pixels = noise((5, 7, 3))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png", channels=1)
    assert image.mode == "L"
    # ITU-R 601 luma, which Pillow computes in fixed point: within one step.
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(np.asarray(image), luma, atol=1)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_numbers_of_channels_are_refused(tmp_path: Path, channels: int) -> None:
    with pytest.raises(InvalidInputError, match=rf"1 channel .* or 3 .* got {channels}"):
        load_image(tmp_path / "a.png", channels=channels)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(noise((4, 6, 3)))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    image.save(tmp_path / "a.png", exif=exif)
    loaded = load_image(tmp_path / "a.png", channels=3)
    expected = np.rot90(np.asarray(image), k=-1)
    np.testing.assert_array_equal(np.asarray(loaded), expected)


def test_alpha_is_dropped_as_timm_does(tmp_path: Path) -> None:
    pixels = noise((4, 6, 4))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = np.asarray(load_image(tmp_path / "a.png", channels=3))
    np.testing.assert_array_equal(loaded, pixels[..., :3])


def test_palette_with_transparency_leaks_no_warning(tmp_path: Path) -> None:
    image = Image.fromarray(noise((4, 6, 3))).quantize(8)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_image(tmp_path / "a.png", channels=3)
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(image.convert("RGB")))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red = np.asarray(load_image(tmp_path / "a.jpg", channels=3)).astype(int)
    np.testing.assert_allclose(red, np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=3)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grayscale_is_scaled(tmp_path: Path, name: str, channels: int) -> None:
    values = np.array([[0, 128, 129, 257], [32768, 40000, 65407, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    loaded = np.asarray(load_image(tmp_path / name, channels=channels))
    expected = np.array([[0, 0, 1, 1], [128, 156, 255, 255]])  # round(value / 257), by hand
    np.testing.assert_array_equal(loaded if channels == 1 else loaded[..., 1], expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_samples_are_refused(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.ones((2, 2), dtype=dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="32-bit samples"):
        load_image(tmp_path / "a.tif", channels=1)


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "a.jpg", format="PNG")
    assert load_image(tmp_path / "a.jpg", channels=3).getpixel((0, 0)) == (1, 2, 3)


def bomb(width: int, height: int) -> bytes:
    """A valid PNG header that promises this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "side",
    [8001, 9500, 60_000],
    ids=["above our limit", "Pillow would warn", "Pillow would raise"],
)
def test_too_many_pixels_are_refused_from_the_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(bomb(side, side))
    with pytest.raises(ImageError, match=r"too large: at most 64,000,000 pixels"):
        load_image(tmp_path / "a.png", channels=3)


def test_exactly_the_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (4, 5)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 20)
    assert load_image(tmp_path / "a.png", channels=1).size == (4, 5)
    monkeypatch.setattr(images, "MAX_PIXELS", 19)
    with pytest.raises(ImageError, match="got 4 x 5 pixels"):
        load_image(tmp_path / "a.png", channels=1)


def encoded(file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise((64, 64, 3))).save(buffer, format=file_format)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_truncated_files_are_errors_of_one_sentence(tmp_path: Path, file_format: str) -> None:
    data = encoded(file_format)
    for share in (0.1, 0.5, 0.9):
        path = tmp_path / "a.bin"
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ImageError) as caught:
            load_image(path, channels=3)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a picture of a known format"),
        (b"hello world" * 99, "not a picture of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture of a known format"),
    ],
    ids=["empty", "text", "postscript"],
)
def test_other_files_are_no_pictures(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=expected):
        load_image(tmp_path / "a.png", channels=3)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"There is no picture .*nowhere\.png"):
        load_image(tmp_path / "nowhere.png", channels=3)
    with pytest.raises(ImageError, match="is not a file; give a picture"):
        load_image(tmp_path, channels=3)


def test_suffixes_are_lower_case_and_readable() -> None:
    known = {suffix for suffix, name in Image.registered_extensions().items()}
    assert {s for s in IMAGE_SUFFIXES if s != s.lower() or s not in known} == set()
    assert ".jpeg" in IMAGE_SUFFIXES
