"""``mimiq-deploy report`` through the command line, on a run that was really calibrated."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _helpers.report_runs import make_bare_run, make_full_run
from _helpers.tiny_students import tiny_vit
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import save_file

from mimiq_calib.recipe import Recipe
from mimiq_deploy import inside_view
from mimiq_deploy.calibration import CalibrationRequest, calibrate
from mimiq_deploy.cli import cli
from mimiq_deploy.exporting import export_run
from mimiq_runtime.inside_view import INSIDE_ATTENTION, INSIDE_RECORD, read_inside_record
from mimiq_runtime.report.page import is_report
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from pathlib import Path

ARCHITECTURE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    weights = folder / "tiny.safetensors"
    save_file(tiny_vit().state_dict(), weights)
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "quantization": {"weight_bits": 4, "activation_bits": 4},
            "synthesis": {
                "source": "noise",
                "num_images": 4,
                "held_out": 3,
                "batch_size": 4,
                "precision": "fp32",
            },
            "observation": {"num_images": 4, "batch_size": 4},
            "distillation": {"epochs": 1, "batch_size": 4, "precision": "fp32"},
        }
    )
    request = CalibrationRequest(
        model="vit_tiny_patch16_224",
        recipe=recipe,
        checkpoint=weights,
        model_arguments=ARCHITECTURE,
    )
    run = calibrate(request, folder / "run")
    export_run(run, "ort-cpu")
    return run.root


@pytest.fixture
def run(calibrated: Path, tmp_path: Path) -> Path:
    return shutil.copytree(calibrated, tmp_path / "run")


def test_it_looks_inside_both_models_and_keeps_what_it_found(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = invoke("report", run)
    assert result.exit_code == 0, result.output
    opened = RunDirectory.open(run)
    assert {INSIDE_RECORD, INSIDE_ATTENTION, "report.html"} <= set(opened.manifest.files)
    assert opened.damaged_files() == []
    record = read_inside_record(opened)
    assert record is not None
    assert record.attention == ["blocks.0.attn", "blocks.1.attn"]
    assert record.source == "held-out images (noise)"
    assert record.images == 3
    maps = load_file(run / INSIDE_ATTENTION)
    assert maps["full-precision/blocks.0.attn"].shape == (3, 4, 4)
    assert not np.array_equal(maps["full-precision/blocks.1.attn"], maps["quantized/blocks.1.attn"])
    html = (run / "report.html").read_text()
    assert 'alt="quantized, blocks.1, image 3"' in html

    def never(run: RunDirectory) -> None:
        pytest.fail("measured a second time")

    monkeypatch.setattr("mimiq_deploy.reporting.look_inside", never)
    assert invoke("report", run).exit_code == 0
    assert (run / "report.html").read_text() == html


def test_other_weights_are_looked_into_again(run: Path) -> None:
    assert invoke("report", run).exit_code == 0
    opened = RunDirectory.open(run)
    tensors = opened.read_tensors(opened.QUANTIZED, made_by="calibrate")
    tensors["blocks.0.mlp.fc1.weight_quantizer.scale"] *= 8
    before = read_inside_record(opened)
    opened.write_tensors(opened.QUANTIZED, tensors)
    assert read_inside_record(opened) is None
    assert invoke("report", run).exit_code == 0
    after = read_inside_record(RunDirectory.open(run))
    assert before is not None
    assert after is not None
    assert before.layers != after.layers


def test_without_torch_the_page_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside_view.util, "find_spec", lambda name: None)
    result = invoke("report", run)
    assert result.exit_code == 0, result.output
    html = (run / "report.html").read_text()
    assert html.count("torch and timm are not installed here") == 2
    assert not (run / INSIDE_RECORD).exists()


def test_a_recipe_of_an_older_version_costs_two_sections(run: Path) -> None:
    content = json.loads((run / "run.json").read_text())
    content["recipe"]["quantization"]["of an older version"] = True
    (run / "run.json").write_text(json.dumps(content))
    result = invoke("report", run)
    assert result.exit_code == 0, result.output
    assert (run / "report.html").read_text().count("has a recipe that is not valid") == 2


def test_validate_records_what_the_page_shows_of_disagreements(run: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    random = np.random.default_rng(0)
    # In the order in which a folder without labels is read, too.
    names = [f"{number:02}.png" for number in range(12)]
    for name in names:
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / name)
    labels = "\n".join(f"{name},{number % 10}" for number, name in enumerate(names))
    (pictures / "labels.csv").write_text(f"file,label\n{labels}\n")
    result = invoke("validate", run, "--data", pictures, "--json")
    assert result.exit_code == 0, result.output
    written: dict[str, Any] = json.loads((run / "predictions.json").read_text())
    assert written["pictures"] == names
    exact, engine = (written["answers"][name]["top1"] for name in ("full-precision", "ort-cpu"))
    agreement = json.loads(result.stdout)["engines"]["ort-cpu"]["parity"]["full-precision"]
    same = np.mean([a == b for a, b in zip(exact, engine, strict=True)])
    assert same == pytest.approx(agreement["agreement"])
    apart = sum(a != b for a, b in zip(exact, engine, strict=True))
    assert apart > 0  # else the next lines would prove nothing
    assert invoke("report", run, "--data", pictures).exit_code == 0
    html = (run / "report.html").read_text()
    assert html.count('alt="label: ') == apart
    (pictures / "labels.csv").unlink()
    assert invoke("validate", run, "--data", pictures).exit_code == 0
    unlabelled = json.loads((run / "predictions.json").read_text())
    assert unlabelled == {**written, "labels": None}


def test_several_runs_need_a_place_for_their_page(tmp_path: Path) -> None:
    runs = [make_full_run(tmp_path / name).root for name in ("a", "b")]
    refused = invoke("report", *runs)
    assert refused.exit_code == 2
    assert "--output" in refused.output
    twice = invoke("report", runs[0], runs[0], "-o", tmp_path / "page.html")
    assert twice.exit_code == 2
    assert "given twice" in twice.output
    done = invoke("report", *runs, "-o", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    assert 'data-section="pareto"' in (tmp_path / "page.html").read_text()
    assert not (runs[0] / "report.html").exists()


def test_a_run_that_was_only_begun_has_a_page(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path / "run")
    result = invoke("report", run.root)
    assert result.exit_code == 0, result.output
    assert "calibrated to its end" in run.path("report.html").read_text()


def test_what_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    result = invoke("report", tmp_path / "none")
    assert result.exit_code == 2
    assert "not a run directory" in result.output


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": 99}'])
def test_one_damaged_run_among_several_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    good, bad = (make_full_run(tmp_path / name).root for name in ("good", "bad"))
    before = (good / "run.json").read_bytes()
    (bad / "run.json").write_bytes(content)
    result = invoke("report", good, bad, "-o", tmp_path / "page.html")
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {bad / 'run.json'} ")
    assert result.output.count("\n") == 1
    assert not (tmp_path / "page.html").exists()
    assert (good / "run.json").read_bytes() == before


def test_a_report_in_one_of_several_runs_is_recorded_there(tmp_path: Path) -> None:
    runs = [make_full_run(tmp_path / name).root for name in ("a", "b")]
    for _ in range(2):
        assert invoke("report", *runs, "-o", runs[1] / "report.html").exit_code == 0
        opened = RunDirectory.open(runs[1])
        assert "report.html" in opened.manifest.files
        assert opened.damaged_files() == []


@pytest.mark.parametrize("name", ["run.json", "quantized.safetensors"])
def test_no_other_file_of_a_run_is_lost_to_a_report(tmp_path: Path, name: str) -> None:
    run = make_full_run(tmp_path / "run").root
    before = (run / name).read_bytes()
    result = invoke("report", run, "-o", run / name)
    assert result.exit_code == 2
    assert "choose a place outside" in result.output
    assert (run / name).read_bytes() == before


@pytest.mark.parametrize("content", ["my notes", "<!doctype html><title>Mine</title>"])
def test_no_file_of_another_kind_is_lost_to_a_report(tmp_path: Path, content: str) -> None:
    run = make_full_run(tmp_path / "run").root
    notes = tmp_path / "notes.html"
    notes.write_text(content)
    result = invoke("report", run, "-o", notes)
    assert result.exit_code == 2
    assert "is no report, and is not replaced; give another --output" in result.output
    assert notes.read_text() == content


def test_a_report_and_an_empty_file_are_replaced(tmp_path: Path) -> None:
    run, page = make_full_run(tmp_path / "run").root, tmp_path / "page.html"
    page.touch()
    for _ in range(2):
        assert invoke("report", run, "-o", page).exit_code == 0
        assert is_report(page)
        page.write_text(page.read_text() + "<!-- older -->")
    assert invoke("report", run, run, "-o", page).exit_code == 2
    assert "<!-- older -->" in page.read_text()


def test_a_missing_library_is_said_before_any_work(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = invoke("report", run)
    assert result.exit_code == 2
    assert "mimiq-deploy[report]" in result.output
    assert not (run / INSIDE_RECORD).exists()
