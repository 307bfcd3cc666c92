"""Files of a run with the right digest that say what no stage would have written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _helpers.hostile import refused
from _helpers.report_runs import make_full_run
from _helpers.runs import ONNX_PATH, SIZE, make_run
from click.testing import CliRunner
from safetensors.torch import save_file

from mimiq_deploy.cli import cli
from mimiq_runtime.reference import read_reference, reference_path
from mimiq_runtime.run_images import read_shard, shards_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mimiq_runtime.run_directory import RunDirectory

PIXELS = np.zeros((2, 3, SIZE, SIZE), np.uint8)
LOGITS = np.zeros((2, 3), np.float32)
SHARD = "images/shard-00000.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "outside").mkdir()
    return make_run(tmp_path / "run")


IMAGES: dict[str, dict[str, Any]] = {
    "another name": {"pictures": PIXELS},
    "nothing": {},
    "another type": {"images": PIXELS.astype(np.float32)},
    "another size": {"images": np.zeros((2, 3, SIZE, SIZE + 1), np.uint8)},
    "another number of channels": {"images": PIXELS[:, :1]},
    "one image without its axis": {"images": PIXELS[0]},
    "no image": {"images": PIXELS[:0]},
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(run: RunDirectory, name: str) -> None:
    run.write_tensors(SHARD, IMAGES[name])
    words = ["validate", run.root, "--data", "synthetic"]
    assert SHARD in refused(words, run.root.parent / "outside")


def test_images_that_are_images(run: RunDirectory) -> None:
    run.write_tensors(SHARD, {"images": PIXELS})
    assert shards_of(run) == [SHARD]
    np.testing.assert_array_equal(read_shard(run, SHARD), PIXELS)


RECORDED: dict[str, dict[str, Any]] = {
    "one of them missing": {"images": PIXELS, "full_precision": LOGITS},
    "one too many": {
        "images": PIXELS,
        "full_precision": LOGITS,
        "fake_quantized": LOGITS,
        "more": LOGITS,
    },
    "fewer logits than images": {
        "images": PIXELS,
        "full_precision": LOGITS[:1],
        "fake_quantized": LOGITS,
    },
    "another number of classes": {
        "images": PIXELS,
        "full_precision": LOGITS,
        "fake_quantized": LOGITS[:, :2],
    },
    "integers for logits": {
        "images": PIXELS,
        "full_precision": LOGITS.astype(int),
        "fake_quantized": LOGITS,
    },
    "images of another size": {
        "images": PIXELS[..., :4],
        "full_precision": LOGITS,
        "fake_quantized": LOGITS,
    },
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_answers(run: RunDirectory, name: str) -> None:
    run.write_tensors(reference_path("ort-cpu"), RECORDED[name])
    assert "reference.safetensors" in refused(
        ["validate", run.root, "--min-agreement", 1], run.root.parent / "outside"
    )


def test_recorded_answers_that_are_some(run: RunDirectory) -> None:
    tensors = {"images": PIXELS, "full_precision": LOGITS, "fake_quantized": LOGITS}
    run.write_tensors(reference_path("ort-cpu"), tensors)
    np.testing.assert_array_equal(read_reference(run, "ort-cpu").fake_quantized, LOGITS)


@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn"])
def test_types_that_numpy_has_not(run: RunDirectory, kind: str) -> None:
    import torch

    path = run.path(SHARD)
    path.parent.mkdir()
    save_file({"images": torch.zeros(2, 3, SIZE, SIZE).to(getattr(torch, kind))}, path)
    run.record_files(SHARD)
    words = ["validate", run.root, "--data", "synthetic"]
    assert SHARD in refused(words, run.root.parent / "outside")


TABLES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another column": lambda row: row.update(offset=1),
    "a column less": lambda row: row.pop("qmin"),
    "no scale": lambda row: row.update(scale=[]),
    "a text for a scale": lambda row: row.update(scale="0.5"),
    "a truth for a scale": lambda row: row.update(scale=True),
    "a fraction for bits": lambda row: row.update(bits=4.5),
    "a number for a name": lambda row: row.update(name=3),
    "a kind of nobody": lambda row: row.update(kind="bias"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_with_other_columns(run: RunDirectory, name: str) -> None:
    content = json.loads((run.root / run.TABLE).read_text())
    TABLES[name](content["tensors"][0])
    run.write_json(run.TABLE, content)
    assert "quantization.json is damaged: tensors.0" in refused(
        ["inspect", run.root], run.root.parent / "outside"
    )


EXPORTS: dict[str, Any] = {
    "a list": [],
    "another scope": {"scope": "everything"},
    "another form of input": {"input": "voice"},
    "weights of another name": {"external_data": {"run.py": {}}},
    "rows that are none": {"quantized": 3},
}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_that_says_something_else(run: RunDirectory, name: str) -> None:
    run.write_json("export/ort-cpu/export.json", EXPORTS[name])
    words = ["bundle", run.root, "-o", run.root.parent / "bundle"]
    assert "export.json is damaged" in refused(words, run.root.parent / "outside")
    assert ONNX_PATH in run.manifest.files


@pytest.mark.parametrize("section", ["synthesis", "quantization"])
def test_a_recipe_without_sections(run: RunDirectory, section: str) -> None:
    content = json.loads((run.root / "run.json").read_text())
    content["recipe"][section] = [3]
    (run.root / "run.json").write_text(json.dumps(content))
    assert f"recipe's {section}" in refused(["inspect", run.root], run.root.parent / "outside")


def test_losses_that_are_none_cost_their_own_section(tmp_path: Path) -> None:
    """Each section of the report is for itself; the others are there."""
    run = make_full_run(tmp_path / "run")
    lines = [
        {**json.loads(line), "loss": "low", "error_after": None, "head_similarity": {}}
        for line in (run.root / run.METRICS).read_text().splitlines()
    ]
    run.write_bytes(run.METRICS, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    done = CliRunner().invoke(cli, ["report", str(run.root)])
    assert done.exit_code == 0, done.output
    page = (run.root / "report.html").read_text()
    assert page.count("cannot be shown") == 2
    assert "Parity and accuracy" in page
