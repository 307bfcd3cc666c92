"""``mimiq-deploy predict`` on a model whose answers are known."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from _helpers.runs import LABELS, LOGIT, ONNX_PATH, make_run
from click.testing import CliRunner, Result
from PIL import Image

from mimiq_deploy.cli import cli
from mimiq_deploy.prediction import predict_files
from mimiq_runtime.errors import RunDirectoryError

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_runtime.run_directory import RunDirectory

# softmax of (LOGIT, -LOGIT, -LOGIT), the logits of a picture of one pure colour
SURE = math.exp(LOGIT) / (math.exp(LOGIT) + 2 * math.exp(-LOGIT))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = []
    for colour in ("blue", "red", "lime"):
        paths.append(tmp_path / f"{colour}.png")
        Image.new("RGB", (20, 12), colour).save(paths[-1])
    return paths


def predict(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["predict", *map(str, arguments)])


def test_json_holds_labels_and_probabilities(run: RunDirectory, pictures: list[Path]) -> None:
    result = predict(run.root, *pictures, "--top", "1", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.output)
    assert answer["engine"] == "ort-cpu"
    assert [row["image"] for row in answer["predictions"]] == [str(path) for path in pictures]
    best = [row["top"] for row in answer["predictions"]]
    assert [[(c["index"], c["label"]) for c in top] for top in best] == [
        [(2, "blue")],
        [(0, "red")],
        [(1, "green")],
    ]
    assert best[1][0]["probability"] == pytest.approx(SURE, abs=1e-6)


def test_table_names_the_class(
    run: RunDirectory, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures[1].parent)
    result = predict(run.root, pictures[1].name)
    assert result.exit_code == 0, result.output
    line = next(line for line in result.output.splitlines() if "red.png" in line)
    assert " red " in line
    assert f"{SURE:.2%}" in line


def test_a_long_path_is_shown_whole(run: RunDirectory, pictures: list[Path]) -> None:
    deep = pictures[1].parent / ("d" * 150)
    deep.mkdir()
    shutil.copy(pictures[1], deep / "last.png")
    cells = predict(run.root, deep / "last.png").output.replace("│", " ").split()
    assert str(deep / "last.png") in "".join(
        cell for cell in cells if cell not in {"red", "green", "blue"} and "%" not in cell
    )


def test_without_names_the_index_is_shown(tmp_path: Path, pictures: list[Path]) -> None:
    run = make_run(tmp_path / "nameless", labels=None)
    result = predict(run.root, pictures[0], "--top", "1")
    assert "│ 2 " in result.output
    (prediction,) = predict_files(run, pictures[:1], top=1)
    assert prediction.top[0].label is None


def test_more_pictures_than_a_batch_and_more_classes_than_there_are(
    run: RunDirectory, pictures: list[Path]
) -> None:
    done: list[int] = []
    predictions = predict_files(run, pictures * 7, top=99, advance=done.append)
    assert [prediction.top[0].label for prediction in predictions] == ["blue", "red", "green"] * 7
    assert done == [16, 5]
    for prediction in predictions:
        assert sorted(c.label or "" for c in prediction.top) == sorted(LABELS)
        assert sum(c.probability for c in prediction.top) == pytest.approx(1)


def test_a_run_that_was_not_exported(tmp_path: Path, pictures: list[Path]) -> None:
    run = make_run(tmp_path / "bare", exported=False)
    result = predict(run.root, pictures[0])
    assert result.exit_code == 2
    assert result.output == (
        f"Error: {run.root} has no finished {ONNX_PATH}: run mimiq-deploy export {run.root} "
        "--target ort-cpu first.\n"
    )


def test_a_model_with_other_classes(tmp_path: Path, pictures: list[Path]) -> None:
    run = make_run(tmp_path / "other", classes=10)
    with pytest.raises(RunDirectoryError, match=r"10 classes, and .* gives 3"):
        predict_files(run, pictures)


def test_a_missing_picture(run: RunDirectory, tmp_path: Path) -> None:
    result = predict(run.root, tmp_path / "none.png")
    assert result.exit_code == 2
    assert "none.png" in result.output.splitlines()[-1]
    assert result.output.startswith("Error: ")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--engine", "abacus", "got 'abacus'"), ("--top", "0", "--top")],
    ids=["engine", "top"],
)
def test_bad_options(
    run: RunDirectory, pictures: list[Path], option: str, value: str, words: str
) -> None:
    result = predict(run.root, pictures[0], option, value)
    assert result.exit_code == 2
    assert words in result.output.splitlines()[-1]


def test_needs_neither_torch_nor_onnx(run: RunDirectory, pictures: list[Path]) -> None:
    code = """
import sys
for name in ("torch", "torchvision", "timm", "onnx", "mimiq_calib", "mimiq_export"):
    sys.modules[name] = None  # importing it fails
from mimiq_deploy.cli import main
main()
"""
    result = subprocess.run(
        [sys.executable, "-c", code, "predict", str(run.root), str(pictures[1]), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["predictions"][0]["top"][0]["label"] == "red"
