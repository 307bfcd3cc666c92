"""The report in a real browser: Chromium without a window, at two widths and in both themes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest
from _helpers.report_runs import PICTURES, make_full_run
from PIL import Image

from mimiq_runtime.report.page import write_page

if TYPE_CHECKING:
    from pathlib import Path

CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH")

WIDTHS = {"phone": 390, "desktop": 1280}
HEIGHT = 3000
DARK = "--blink-settings=preferredColorScheme=0"

# The report may run no script; a page around it measures it at both widths.
MEASURE = """<!doctype html><body>{frames}<script>
onload = () => {{
  for (const frame of document.querySelectorAll("iframe")) {{
    const root = frame.contentDocument.documentElement;
    const inside = [...root.querySelectorAll("section, .tile, figure, svg, img, table")];
    const broken = [...root.querySelectorAll("img")].filter((img) => !img.naturalWidth);
    const result = document.createElement("p");
    result.textContent = ["measured", frame.id, root.scrollWidth, root.clientWidth,
      inside.filter((one) => !one.getBoundingClientRect().width
        && one.checkVisibility()).length, broken.length].join(" ");
    document.body.append(result);
  }}
}};
</script></body>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    photographs = folder / "photographs"
    photographs.mkdir()
    for name in PICTURES:
        Image.new("RGB", (300, 200), (200, 120, 40)).save(photographs / name)
    # A name without a place to break it, as file systems allow.
    runs = [make_full_run(folder / name) for name in ("first", "second" * 20)]
    path = folder / "report.html"
    write_page(runs, path, data=photographs)
    return path


def chromium(folder: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
            *("--disable-extensions", "--disable-dev-shm-usage"),
            # The sandbox cannot be had as root, which is what containers are.
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            f"--user-data-dir={folder / 'profile'}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def screenshot(page: Path, folder: Path, width: int, *arguments: str) -> np.ndarray:
    path = folder / "screen.png"
    size = f"--window-size={width},{HEIGHT}"
    chromium(folder, f"--screenshot={path}", size, *arguments, page.as_uri())
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_all_sections_are_in_the_document_and_nothing_is_wider_than_the_screen(
    page: Path, tmp_path: Path
) -> None:
    frames = "".join(
        f'<iframe id="{name}" src="{page.as_uri()}" width="{width}" height="900" '
        'style="border:0"></iframe>'
        for name, width in WIDTHS.items()
    )
    around = tmp_path / "around.html"
    around.write_text(MEASURE.format(frames=frames))
    document = chromium(tmp_path, "--allow-file-access-from-files", "--dump-dom", around.as_uri())
    found = re.findall(r"measured (\w+) (\d+) (\d+) (\d+) (\d+)", document)
    assert {name for name, *_ in found} == set(WIDTHS)
    for name, *numbers in found:
        scroll, client, invisible, broken = map(int, numbers)
        assert client == WIDTHS[name]
        assert scroll <= client, f"{name}: {scroll - client} pixels too wide"
        assert (invisible, broken) == (0, 0)
    document = chromium(tmp_path, "--dump-dom", page.as_uri())
    sections = re.findall(r'data-section="([\w-]+)"', document)
    assert sections[0] == "pareto"
    assert len(sections) == 1 + 2 * 10


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_both_themes_can_be_read(page: Path, tmp_path: Path, width: int) -> None:
    light = screenshot(page, tmp_path, width)
    dark = screenshot(page, tmp_path, width, DARK)
    assert light.shape == dark.shape == (HEIGHT, width, 3)
    # The corner is the page's background; most of what differs from it is card and text.
    assert light[0, 0].min() > 230
    assert dark[0, 0].max() < 40
    for screen in (light, dark):
        away = np.abs(screen - screen[0, 0]).max(axis=2)
        assert (away > 120).mean() > 0.01  # ink, in every theme
        # Ink all the way down: no figure or table has swallowed the page.
        assert all((band > 60).any() for band in np.array_split(away, 12))
