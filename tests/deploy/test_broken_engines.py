"""An engine that gives no numbers, be it for one picture only, passes no gate."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _helpers.runs import LOGIT, SIZE, make_run
from click.testing import CliRunner

from mimiq_deploy.cli import cli
from mimiq_runtime.ort_session import OrtSession
from mimiq_runtime.reference import reference_path

if TYPE_CHECKING:
    from pathlib import Path

GATES = {"min_agreement": "0.5", "min_sqnr": "0", "max_kl": "100"}
COUNT = 3


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = make_run(tmp_path / "run")
    pixels = np.zeros((COUNT, 3, SIZE, SIZE), dtype=np.uint8)
    pixels[np.arange(COUNT), np.arange(COUNT)] = 255
    logits = LOGIT * (2 * np.eye(COUNT, dtype=np.float32) - 1) + np.float32(0.01)
    run.write_tensors(
        reference_path("ort-cpu"),
        {"images": pixels, "full_precision": logits, "fake_quantized": logits},
    )
    return run.root


def validate(run: Path) -> tuple[int, list[dict[str, Any]]]:
    options = [f"--{name.replace('_', '-')}={limit}" for name, limit in GATES.items()]
    result = CliRunner().invoke(cli, ["validate", str(run), "--json", *options])
    gates: list[dict[str, Any]] = json.loads(result.stdout)["engines"]["ort-cpu"]["gates"]
    return result.exit_code, gates


def test_one_picture_without_numbers_fails_every_gate(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, gates = validate(run)
    assert code == 0
    assert {gate["name"] for gate in gates} == set(GATES)
    real = OrtSession.run

    def broken(session: OrtSession, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        logits = real(session, images).copy()
        logits[0, 1] = np.nan
        return logits

    monkeypatch.setattr(OrtSession, "run", broken)
    code, gates = validate(run)
    assert code == 1
    assert {gate["name"]: gate["passed"] for gate in gates} == dict.fromkeys(GATES, False)
    assert [gate["measured"] for gate in gates] == [None] * len(GATES)
