"""Names and numbers that print badly, or not at all: in files, in names of files, in options."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from _helpers.hostile import refused
from _helpers.runs import SIZE, make_run
from click.testing import CliRunner
from PIL import Image

from mimiq_deploy.cli import cli

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_runtime.run_directory import RunDirectory

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
EVIL = "cat\x1b[2J\x9b31m\u202e\x07"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "outside").mkdir()
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "picture.png")
    return make_run(tmp_path / "run", labels=[EVIL, "\x1b]0;title\x07", "b"])


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("command", ["inspect", "predict"])
def test_nothing_that_a_terminal_obeys_is_printed(
    run: RunDirectory, command: str, options: list[str]
) -> None:
    content = json.loads((run.root / "run.json").read_text())
    content["environment"] = {EVIL: EVIL}
    content["model"]["weights"] = content["recipe"]["name"] = EVIL
    (run.root / "run.json").write_text(json.dumps(content))
    picture = [run.root.parent / "picture.png"] if command == "predict" else []
    result = CliRunner().invoke(cli, [command, *map(str, [run.root, *picture]), *options])
    assert result.exit_code == 0, result.output
    assert "cat" in result.output
    assert OBEYED.search(result.output) is None
    if options:
        printed = json.loads(result.stdout)
        assert EVIL in _texts(printed)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for each in pair for text in _texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [str(value)]


def test_nothing_in_an_error_is_obeyed(run: RunDirectory) -> None:
    content = json.loads((run.root / "run.json").read_text())
    content["model"][EVIL] = content["seed"] = EVIL * 1000
    (run.root / "run.json").write_text(json.dumps(content))
    sentence = refused(["inspect", run.root], run.root.parent / "outside")
    assert OBEYED.search(sentence) is None
    assert len(sentence) < 1600


BYTES = os.fsdecode(b"caf\xe9")
"""As an older system encoded it."""


@pytest.mark.parametrize("options", [[], ["--junit"]])
def test_an_argument_that_is_no_text(run: RunDirectory, options: list[str]) -> None:
    result = CliRunner().invoke(cli, ["inspect", *options, f"{run.root}{BYTES}"])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert "is not UTF-8" in result.stderr


def test_a_picture_whose_name_is_no_text(run: RunDirectory) -> None:
    folder = run.root.parent / "data" / "0"
    folder.mkdir(parents=True)
    Image.new("RGB", (SIZE, SIZE)).save(os.fsencode(folder) + b"/caf\xe9.png", format="PNG")
    sentence = refused(["validate", run.root, "--data", folder.parent], run.root.parent / "outside")
    assert "is not UTF-8; rename the picture" in sentence


LONG = "n" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", LONG],
        ["inspect", f"{LONG}.onnx"],
        ["predict", LONG, "picture.png"],
        ["predict", "run", LONG],
        ["validate", "run", "--data", LONG],
        ["validate", "run", "--gates", LONG],
        ["bench", "run", "--compare", LONG],
        ["report", LONG],
        ["build", LONG],
        ["bundle", "run", "--labels", LONG],
        ["bundle", "run", "-o", LONG],
        ["calibrate", "vit_tiny_patch16_224", "-o", "new", "--recipe", LONG],
        ["calibrate", "vit_tiny_patch16_224", "-o", "new", "--checkpoint", LONG],
        ["calibrate", "vit_tiny_patch16_224", "-o", "new", "--checkpoint", "x/" * 3000],
    ],
    ids=str,
)
def test_names_that_no_file_can_have(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(run.root.parent)
    sentence = refused(words, run.root.parent / "outside")
    assert len(sentence) < 1600


def test_a_long_name_in_labels_csv(run: RunDirectory) -> None:
    folder = run.root.parent / "data"
    folder.mkdir()
    (folder / "labels.csv").write_text(f"file,label\n{LONG}.png,1\n")
    sentence = refused(["validate", run.root, "--data", folder], run.root.parent / "outside")
    assert "not there" in sentence
