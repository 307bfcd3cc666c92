"""Pictures: bombs, wrong formats and broken files are refused; odd ones that are right are read."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _helpers.hostile import refused
from _helpers.runs import make_run
from PIL import Image, ImageCms

from mimiq_runtime.errors import ImageError
from mimiq_runtime.images import load_image
from mimiq_runtime.report.embedding import embed_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RAMP = np.linspace(0, 255, 64 * 3).reshape(8, 8, 3).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that claims a size, and has the pixels of another."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + body + chunk(b"IEND", b"")
    )


def gif_of(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b"\x3b"


def bmp_of(width: int, height: int) -> bytes:
    head = struct.pack("<IHHI", 54, 0, 0, 54)
    return b"BM" + head + struct.pack("<IiiHHIIIIII", 40, width, height, 1, 24, *[0] * 6)


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("picture.png", bytes(50_000_000))
    return buffer.getvalue()


def jpeg() -> bytes:
    return saved(Image.fromarray(RAMP), "JPEG")


HOSTILE: dict[str, Callable[[], bytes]] = {
    "zero bytes": lambda: b"",
    "one byte": lambda: b"\x89",
    "text": lambda: b"<html>not a picture</html>",
    "zip bomb": zip_bomb,
    "gzip bomb": lambda: gzip.compress(bytes(50_000_000)),
    "PNG of 60000 x 60000": lambda: png(60_000, 60_000),
    "PNG of 2^31 x 2^31": lambda: png(2**31 - 1, 2**31 - 1),
    "PNG with too few pixels": lambda: png(4000, 4000),
    "PNG with a text that unpacks to 100 MB": lambda: png(
        8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))
    ),
    "PNG of a size of zero": lambda: png(0, 8),
    "PNG cut": lambda: saved(Image.fromarray(RAMP), "PNG")[:60],
    "JPEG cut": lambda: jpeg()[:200],
    "JPEG of 65500 x 65500": lambda: jpeg().replace(
        struct.pack(">HH", 8, 8), struct.pack(">HH", 65_500, 65_500), 1
    ),
    "GIF of 65535 x 65535": lambda: gif_of(65_535, 65_535),
    "BMP of 2^31 x 2^31": lambda: bmp_of(2**31 - 1, 2**31 - 1),
    "PPM of 10^9 x 10^9": lambda: b"P6 1000000000 1000000000 255\n",
    "TIFF cut": lambda: saved(Image.fromarray(RAMP), "TIFF")[:50],
    "PostScript, which would start a program": lambda: (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"
    ),
    "SVG": lambda: b'<svg><image href="file:///etc/passwd"/></svg>',
    "32-bit samples, of no known range": lambda: saved(
        Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    path = tmp_path / "pictures" / "picture.png"
    path.parent.mkdir()
    path.write_bytes(HOSTILE[name]())
    assert "picture.png" in refused(["predict", run.root, path], run.root)


@pytest.mark.parametrize("name", ["a folder", "a loop of links", "a pipe", "not there"])
def test_no_files(tmp_path: Path, name: str) -> None:
    import os

    run = make_run(tmp_path / "run")
    path = tmp_path / "picture.png"
    if name == "a folder":
        path.mkdir()
    elif name == "a loop of links":
        path.symlink_to(path)
    elif name == "a pipe":
        os.mkfifo(path)
    refused(["predict", run.root, path], run.root)


def test_a_file_of_gigabytes(tmp_path: Path) -> None:
    """WebP's decoder reads the whole file before it says how large the picture is."""
    path = tmp_path / "picture.webp"
    path.write_bytes(saved(Image.fromarray(RAMP), "WEBP"))
    with path.open("r+b") as file:
        file.truncate(5 * 2**30)
    run = make_run(tmp_path / "run")
    assert "at most 512 MiB" in refused(["predict", run.root, path], run.root)


LOADING = """
import pathlib, resource, sys
from mimiq_runtime.images import load_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
picture = load_image(pathlib.Path(sys.argv[1]), channels=3)
print(*picture.size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize(("depth", "colour", "size"), [(16, 0, 2), (8, 6, 4)])
def test_memory_of_the_largest_pictures(tmp_path: Path, depth: int, colour: int, size: int) -> None:
    """Grey of 16 bits, and RGBA: the decoded picture, the answer, and little beside."""
    width, height = 8000, 8000
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    row = zlib.compressobj(1)
    body = b"".join(row.compress(bytes(1 + size * width)) for _ in range(height)) + row.flush()
    path = tmp_path / "picture.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(path)], capture_output=True, text=True, check=True
    )
    *shape, mib = done.stdout.split()
    assert shape == [str(width), str(height)]
    assert float(mib) < 600


def test_a_preview_that_is_a_bomb(tmp_path: Path) -> None:
    for name, data in {"large": png(60_000, 60_000), "few": png(4000, 4000)}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=name):
            embed_file(tmp_path / name)


class TestOddAndRight:
    """What cameras and programs write; the expected pixels are computed without Pillow's modes."""

    def read(self, tmp_path: Path, data: bytes, channels: int = 3) -> np.ndarray[Any, Any]:
        path = tmp_path / "odd.jpg"  # whatever it is: the content decides
        path.write_bytes(data)
        return np.asarray(load_image(path, channels=channels))

    def test_one_pixel(self, tmp_path: Path) -> None:
        one = np.array([[[3, 4, 5]]], np.uint8)
        assert self.read(tmp_path, saved(Image.fromarray(one), "PNG")).tolist() == one.tolist()

    def test_another_format_under_the_name(self, tmp_path: Path) -> None:
        np.testing.assert_array_equal(
            self.read(tmp_path, saved(Image.fromarray(RAMP), "PNG")), RAMP
        )

    def test_cmyk(self, tmp_path: Path) -> None:
        inks = np.dstack([RAMP, np.full((8, 8), 40, np.uint8)])
        data = saved(Image.fromarray(inks, mode="CMYK"), "TIFF")
        light, black = 255.0 - inks[..., :3], 255.0 - inks[..., 3:]
        expected = light * black / 255
        # Pillow rounds twice.
        assert np.abs(self.read(tmp_path, data) - expected).max() <= 2

    def test_sixteen_bits(self, tmp_path: Path) -> None:
        wide = np.arange(0, 65_536, 1024, dtype=np.uint16).reshape(8, 8)
        data = saved(Image.fromarray(wide), "PNG")
        expected = np.rint(wide / 257).astype(np.uint8)
        np.testing.assert_array_equal(self.read(tmp_path, data, channels=1), expected)

    def test_alpha_is_dropped(self, tmp_path: Path) -> None:
        data = saved(Image.fromarray(np.dstack([RAMP, np.zeros((8, 8), np.uint8)])), "PNG")
        np.testing.assert_array_equal(self.read(tmp_path, data), RAMP)

    def test_palette_with_transparency(self, tmp_path: Path) -> None:
        palette = Image.fromarray(RAMP).quantize(256)
        data = saved(palette, "PNG", transparency=0)
        assert np.abs(self.read(tmp_path, data).astype(int) - RAMP).max() <= 8

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_rotation_of_a_camera(self, tmp_path: Path, orientation: int) -> None:
        # By the standard: the row and the column that the first stored row and column stand for.
        upright = {
            1: RAMP,
            2: RAMP[:, ::-1],
            3: RAMP[::-1, ::-1],
            4: RAMP[::-1],
            5: RAMP.transpose(1, 0, 2),
            6: np.rot90(RAMP, -1),
            7: RAMP[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(RAMP),
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = saved(Image.fromarray(RAMP), "PNG", exif=exif)
        np.testing.assert_array_equal(self.read(tmp_path, data), upright)

    def test_first_frame_of_an_animation(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert self.read(tmp_path, data)[0, 0].tolist() == [255, 0, 0]

    def test_a_broken_profile_of_colours(self, tmp_path: Path) -> None:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        data = saved(Image.fromarray(RAMP), "PNG", icc_profile=profile[:100])
        np.testing.assert_array_equal(self.read(tmp_path, data), RAMP)
