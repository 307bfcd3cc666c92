"""The examples of the documentation, run as a reader would run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimiq_runtime.run_directory import RunDirectory

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(command: list[str], folder: Path) -> str:
    # The interpreter's own folder first: there `python` and `mimiq-deploy` are those under test.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def by_commands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("commands")
    script = EXAMPLES / "01_calibrate_export_validate" / "run.sh"
    return folder, run_example(["bash", str(script), "output"], folder)


@pytest.fixture(scope="module")
def by_python(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("python")
    program = EXAMPLES / "02_python_api" / "main.py"
    return folder, run_example([sys.executable, str(program), "output"], folder)


def check_run(root: Path) -> None:
    run = RunDirectory.open(root)
    assert run.manifest.bits == "w4a4"
    assert {stage.state for stage in run.manifest.stages.values()} == {"done"}
    assert run.damaged_files() == []
    report = json.loads(run.path("parity.json").read_text(encoding="utf-8"))
    assert report["passed"]
    assert report["pictures"][1] == 100
    engine = report["engines"]["ort-cpu"]
    assert engine["gates"][0]["measured"] >= 0.9
    # Ten classes: a model that lost its way would be right once in ten times.
    assert engine["accuracy"]["top1"] > 0.5


def test_the_commands(by_commands: tuple[Path, str]) -> None:
    folder, printed = by_commands
    check_run(folder / "output" / "run")
    assert "0000.png" in printed


def test_the_python_api(by_python: tuple[Path, str]) -> None:
    folder, printed = by_python
    check_run(folder / "output" / "run")
    assert "quantizers exported" in printed


def test_both_ways_give_the_same_model(
    by_commands: tuple[Path, str], by_python: tuple[Path, str]
) -> None:
    runs = [RunDirectory.open(folder / "output" / "run") for folder, _ in (by_commands, by_python)]
    for name in (RunDirectory.QUANTIZED, RunDirectory.TABLE, "images/shard-00000.safetensors"):
        first, second = (run.manifest.files[name].sha256 for run in runs)
        assert first == second, name


def test_every_example_is_run() -> None:
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert folders == {"01_calibrate_export_validate", "02_python_api"}
