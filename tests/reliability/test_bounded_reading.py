"""Files that have no end, never begin, or are none at all, wherever a file is read as a whole."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NoReturn

import pytest
from _helpers.hostile import refused
from _helpers.runs import ONNX_PATH, SIZE, make_run
from click.testing import CliRunner
from PIL import Image

from mimiq_deploy.cli import cli
from mimiq_runtime.bounded_file import read_bytes, read_text
from mimiq_runtime.errors import RunDirectoryError
from mimiq_runtime.event_log import EVENTS
from mimiq_runtime.manifest import FileRecord
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MODEL = "vit_tiny_patch16_224"
SECONDS = 10


@pytest.fixture(autouse=True)
def _not_for_ever() -> Iterator[None]:
    def give_up(number: int, frame: object) -> NoReturn:
        pytest.fail(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 * 2**30)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device without an end": lambda path: path.symlink_to("/dev/zero"),
    "an empty device": lambda path: path.symlink_to("/dev/null"),
    "10 GiB": sparse,
    "a directory": lambda path: path.mkdir(),
    "a ring of links": lambda path: path.symlink_to(path),
    "UTF-16": lambda path: path.write_bytes('{"file": 1}'.encode("utf-16")),
    "UTF-32": lambda path: path.write_bytes('{"file": 1}'.encode("utf-32")),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\xfd"),
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "outside").mkdir()
    (tmp_path / "data" / "0").mkdir(parents=True)
    for name in ("data/0/1.png", "picture.png"):
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / name)
    return make_run(tmp_path / "run")


GIVEN: dict[str, Callable[[Path, Path], list[object]]] = {
    "recipe": lambda folder, file: ["calibrate", MODEL, "-o", folder / "new", "--recipe", file],
    "labels": lambda folder, file: ["calibrate", MODEL, "-o", folder / "new", "--labels", file],
    "labels of a bundle": lambda folder, file: [
        *("bundle", folder / "run", "-o", folder / "new", "--labels", file)
    ],
    "gates": lambda folder, file: ["validate", folder / "run", "--gates", file],
    "gates of a benchmark": lambda folder, file: ["bench", folder / "run", "--gates", file],
    "benchmark": lambda folder, file: ["bench", folder / "run", "--compare", file],
    "checkpoint": lambda folder, file: [
        *("calibrate", MODEL, "-o", folder / "new", "--checkpoint", file)
    ],
    "ONNX": lambda folder, file: ["inspect", file, "--lint", "ort-cpu"],
    "ONNX to build": lambda folder, file: ["build", file],
    "ONNX to look at": lambda folder, file: ["inspect", file],
    "picture": lambda folder, file: ["predict", folder / "run", file],
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_is_given(run: RunDirectory, given: str, kind: str) -> None:
    folder = run.root.parent
    HOSTILE[kind](folder / "hostile.pth")
    refused(GIVEN[given](folder, folder / "hostile.pth"), folder / "outside")
    assert not (folder / "new").exists()


@pytest.mark.parametrize("kind", HOSTILE)
def test_labels_csv(run: RunDirectory, kind: str) -> None:
    """It is not passed over for the folders beside it, either."""
    folder = run.root.parent
    HOSTILE[kind](folder / "data" / "labels.csv")
    words = ["validate", run.root, "--data", folder / "data"]
    assert "labels.csv" in refused(words, folder / "outside")


@pytest.mark.parametrize("kind", HOSTILE)
def test_run_json(run: RunDirectory, kind: str) -> None:
    (run.root / "run.json").unlink()
    HOSTILE[kind](run.root / "run.json")
    assert "run.json" in refused(["inspect", run.root], run.root.parent / "outside")


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("kind", HOSTILE)
def test_metrics(run: RunDirectory, kind: str, recorded: bool) -> None:
    HOSTILE[kind](run.root / run.METRICS)
    if recorded:
        files = {**run.manifest.files, run.METRICS: FileRecord(sha256="0" * 64, bytes=0)}
        run.manifest = run.manifest.model_copy(update={"files": files})
    with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl"):
        run.read_metrics("synthesis")


@pytest.mark.parametrize("kind", HOSTILE)
def test_events(run: RunDirectory, kind: str) -> None:
    """Nobody's digest is on them, and nothing depends on them: what is none is passed over."""
    HOSTILE[kind](run.root / EVENTS)
    result = CliRunner().invoke(cli, ["inspect", str(run.root)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "name", ["quantization.json", "metrics.jsonl", "export/ort-cpu/export.json"]
)
def test_what_is_not_what_was_recorded(run: RunDirectory, name: str) -> None:
    """Digests are compared by whatever reads a file, not by inspect --verify alone."""
    if name != run.TABLE:
        run.write_bytes(name, b"{}")
    (run.root / name).write_bytes(b"[]")
    words: dict[str, list[object]] = {
        "quantization.json": ["inspect", run.root],
        "export/ort-cpu/export.json": ["bundle", run.root, "-o", run.root.parent / "new"],
    }
    if name in words:
        assert "the SHA-256 of" in refused(words[name], run.root.parent / "outside")
    else:
        CliRunner().invoke(cli, ["report", str(run.root)])
        assert "the SHA-256 of" in (run.root / "report.html").read_text()


def test_what_is_read_is_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes("ä".encode() * 50)
    assert read_bytes(tmp_path / "file", 100) == "ä".encode() * 50
    assert read_text(tmp_path / "file", 100) == "ä" * 50
    with pytest.raises(ValueError, match="larger than 99 bytes"):
        read_bytes(tmp_path / "file", 99)


def test_the_run_is_one_that_is_accepted(run: RunDirectory) -> None:
    """What is refused above is refused for the file alone."""
    result = CliRunner().invoke(
        cli, ["predict", str(run.root), str(run.root.parent / "picture.png")]
    )
    assert result.exit_code == 0, result.output
    assert ONNX_PATH in RunDirectory.open(run.root).manifest.files
