"""Where a command is told to write: nothing that has to survive is lost, and nothing hangs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from _helpers.hostile import refused
from _helpers.runs import ONNX_PATH, SIZE, make_run
from click.testing import CliRunner
from PIL import Image

from mimiq_deploy.cli import cli

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run, another run, pictures and gates: what must be as it was afterwards."""
    folder = tmp_path / "kept"
    for name in ("run", "other"):
        make_run(folder / name)
    (folder / "data" / "red").mkdir(parents=True)
    Image.new("RGB", (SIZE, SIZE), "red").save(folder / "data" / "red" / "1.png")
    (folder / "data" / "labels.csv").write_text("file,label\nred/1.png,red\n")
    (folder / "gates.yaml").write_text("validate:\n  min_agreement: 0.5\n")
    (folder / "file").write_text("kept")
    (folder / "link").symlink_to("file")
    (folder / "nowhere").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    return folder


PLACES: dict[str, str] = {
    "the manifest": "run/run.json",
    "a recorded file": ONNX_PATH.join(["run/", ""]),
    "a new file in the run": "run/new.xml",
    "a file of another run": "other/quantization.json",
    "in a folder of another run": "other/export/ort-cpu/new",
    "by way of a parent": "data/../run/run.json",
    "a link": "link",
    "a link to itself": "nowhere",
    "through a link to itself": "nowhere/file",
    "a pipe": "pipe",
    "below a file": "file/new",
    "a name of 300 letters": "n" * 300,
}


def to_junit(folder: Path, place: Path) -> list[object]:
    gates = folder / "gates.yaml"
    return ["validate", folder / "run", "--gates", gates, "--junit", place]


def to_markdown(folder: Path, place: Path) -> list[object]:
    return ["validate", folder / "run", "--markdown", place]


def to_junit_of_bench(folder: Path, place: Path) -> list[object]:
    return ["bench", folder / "run", "--compare", folder / "file", "--junit", place]


def to_report(folder: Path, place: Path) -> list[object]:
    return ["report", folder / "run", "-o", place]


def to_bundle(folder: Path, place: Path) -> list[object]:
    return ["bundle", folder / "run", "--force", "-o", place]


def to_timings(folder: Path, place: Path) -> list[object]:
    return ["build", folder / "run" / ONNX_PATH, "--timing-cache", place]


COMMANDS = [to_junit, to_markdown, to_junit_of_bench, to_report, to_bundle, to_timings]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_must_survive(
    folder: Path, command: Callable[[Path, Path], list[object]], place: str
) -> None:
    sentence = refused(command(folder, folder / PLACES[place]), folder)
    assert "choose" in sentence


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/stdout"])
def test_a_device(folder: Path, command: Callable[[Path, Path], list[object]], device: str) -> None:
    before = identity(device)
    refused(command(folder, folder.joinpath(device)), folder)
    assert identity(device) == before


def identity(path: str) -> tuple[int, ...]:
    """What a file is; its times change when any process uses a device."""
    found = os.lstat(path)
    return found.st_mode, found.st_dev, found.st_ino, found.st_rdev


@pytest.mark.parametrize("command", [to_junit, to_markdown, to_report, to_timings])
def test_a_directory(folder: Path, command: Callable[[Path, Path], list[object]]) -> None:
    assert "a directory" in refused(command(folder, folder / "data"), folder)


@pytest.mark.parametrize("place", ["run", "run/export", "other/new"])
@pytest.mark.parametrize("command", ["bundle", "triton", "build", "study"])
def test_a_folder_in_a_run(folder: Path, command: str, place: str) -> None:
    words = {
        "bundle": ["bundle", folder / "run", "--force"],
        "triton": ["bundle", folder / "run", "--force", "--triton"],
        "build": ["build", folder / "run" / ONNX_PATH],
        "study": ["study", "vit_tiny_patch16_224"],
    }[command]
    assert "lies in the run" in refused([*words, "-o", folder / place], folder)


@pytest.mark.parametrize("name", ["gates.yaml", "data/labels.csv"])
def test_what_is_read(folder: Path, name: str) -> None:
    command = to_junit(folder, folder / name)
    assert "is read here" in refused([*command, "--data", folder / "data"], folder)


def test_two_reports_in_one_file(folder: Path) -> None:
    command = to_junit(folder, folder.parent / "a")
    words = [*command, "--markdown", folder.parent / "kept" / ".." / "a"]
    assert "would both write" in refused(words, folder)


def test_an_earlier_report_is_replaced_as_a_whole(folder: Path) -> None:
    """What is refused above is not refused because nothing is ever written."""
    place = folder.parent / "page.html"
    place.write_text("<!doctype html><title>mimiq-deploy report: of yesterday</title>")
    done = CliRunner().invoke(cli, [*map(str, to_report(folder, place))])
    assert done.exit_code == 0, done.output
    assert place.read_text().startswith("<!doctype html>")
    assert "of yesterday" not in place.read_text()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["kept", "page.html"]
