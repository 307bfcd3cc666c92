"""The composite GitHub Action: what it declares, and what its script does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import numpy as np
import pytest
import yaml
from _helpers.runs import LOGIT, SIZE, make_run

from mimiq_deploy.cli import cli
from mimiq_runtime.reference import reference_path

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / ".github/actions/validate/action.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
STEP = STEPS[-1]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with recorded answers, in a folder whose name is hostile to shells."""
    run = make_run(tmp_path / "a run; touch pwned $(touch pwned) `touch pwned` \"'")
    pixels = np.zeros((3, 3, SIZE, SIZE), dtype=np.uint8)
    pixels[np.arange(3), np.arange(3)] = 255
    # A hundredth from what the model gives: a limit can lie on both sides of that.
    logits = LOGIT * (2 * np.eye(3, dtype=np.float32) - 1) + np.float32(0.01)
    run.write_tensors(
        reference_path("ort-cpu"),
        {"images": pixels, "full_precision": logits, "fake_quantized": logits},
    )
    return run.root


def execute(folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """The step's script as GitHub runs it, with its environment taken from the inputs."""
    program = folder / "bin" / "mimiq-deploy"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mimiq_deploy "$@"\n')
    program.chmod(0o755)
    script = folder / "script.sh"
    script.write_text(STEP["run"])
    defaults = {name: str(each.get("default", "")) for name, each in ACTION["inputs"].items()}
    given = defaults | inputs
    environment = {
        name: given[re.fullmatch(r"\$\{\{ inputs\.(\w+) \}\}", text).group(1)]  # type: ignore[union-attr]
        for name, text in STEP["env"].items()
    }
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
            "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_step_names_its_shell_and_every_input_is_declared_and_used() -> None:
    assert ACTION["runs"]["using"] == "composite"
    assert all(step["shell"] == "bash" for step in STEPS)
    used = set(re.findall(r"inputs\.([\w-]+)", yaml.safe_dump(ACTION)))
    assert used == set(ACTION["inputs"])
    for declared in ACTION["inputs"].values():
        assert declared["description"]
        assert declared.get("required", False) is ("default" not in declared)


def test_no_script_holds_an_expression() -> None:
    """GitHub would paste the value into the script before the shell reads it."""
    assert all("${{" not in step["run"] for step in STEPS)


def test_its_options_are_those_of_the_command() -> None:
    command = cli.get_command(click.Context(cli), "validate")
    assert command is not None
    known = {name for parameter in command.params for name in parameter.opts}
    used = set(re.findall(r"(?<![\w-])--[\w-]+", STEP["run"]))
    assert used >= {"--gates", "--junit", "--markdown", "--engine", "--against", "--data"}
    assert used <= known


def test_the_script_passes_and_writes_both_reports(run: Path, tmp_path: Path) -> None:
    (tmp_path / "gates.yaml").write_text("validate: {min_agreement: 1.0, max_kl: 0.01}\n")
    (tmp_path / "summary.md").write_text("from an earlier step\n")
    done = execute(tmp_path, run=str(run), gates="gates.yaml", engines=" ort-cpu ")
    assert done.returncode == 0, done.stdout + done.stderr
    cases = ElementTree.parse(tmp_path / "mimiq-deploy.xml").findall(".//testcase")
    assert [case.get("name") for case in cases] == ["min_agreement", "max_kl"]
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("from an earlier step\n## mimiq-deploy validate: passed\n")
    assert not (tmp_path / "pwned").exists()


def test_names_on_lines_of_their_own_are_all_examined(run: Path, tmp_path: Path) -> None:
    """As YAML's block of lines gives them; a name that is overlooked would be a gate that is."""
    (tmp_path / "gates.yaml").write_text("validate: {min_agreement: 1.0}\n")
    done = execute(tmp_path, run=str(run), gates="gates.yaml", engines="ort-cpu\nopenvino\n")
    # Nothing was exported for the second one.
    assert done.returncode == 2, done.stdout + done.stderr
    assert "--target openvino" in done.stderr


def test_a_gate_that_fails_fails_the_step(run: Path, tmp_path: Path) -> None:
    (tmp_path / "gates.yaml").write_text("validate: {min_sqnr: 200}\n")
    done = execute(tmp_path, run=str(run), gates="gates.yaml", against="fp32", data="noise")
    # There is no export of the full-precision model in this run: a user's mistake.
    assert done.returncode == 2, done.stdout + done.stderr
    assert "export" in done.stderr
    done = execute(tmp_path, run=str(run), gates="gates.yaml", junit="a b.xml")
    assert done.returncode == 1, done.stdout + done.stderr
    failures = ElementTree.parse(tmp_path / "a b.xml").findall(".//failure")
    assert len(failures) == 1
    assert "FAILED" in (tmp_path / "summary.md").read_text()
