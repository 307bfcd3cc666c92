"""``benchmarks/gpu_engines.py``: its measuring and its table on a CPU, all of it on a GPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from _helpers.runs import SIZE, make_run, write_classifier
from onnx import numpy_helper

from mimiq_deploy.exporting import onnx_path
from mimiq_runtime import doctor
from mimiq_runtime.doctor import Capability

if TYPE_CHECKING:
    from types import ModuleType

    from mimiq_runtime.run_directory import RunDirectory

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "gpu_engines.py"


@pytest.fixture
def gpu_engines(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("gpu_engines", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_engines", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that has all exports already."""
    run = make_run(tmp_path / "run")
    for target in ("fp32", "fp16", "trt", "ort-cuda"):
        write_classifier(run.path(onnx_path(target)))
        run.record_files(onnx_path(target))
    return run


def test_without_a_gpu_it_says_what_is_missing(
    gpu_engines: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = Capability(name="trt", ready=False, missing=["no GPU here"])
    monkeypatch.setattr(gpu_engines, "diagnose", lambda commands: commands)
    monkeypatch.setattr(gpu_engines, "unmet", lambda found, needed: [lacking])
    assert gpu_engines.main(["nowhere"]) == gpu_engines.NOT_HERE
    assert capsys.readouterr().err.endswith("trt: no GPU here\n")
    assert set(gpu_engines.NEEDED) <= set(doctor.CAPABILITIES)


def test_the_table_on_a_cpu(gpu_engines: ModuleType, run: RunDirectory, tmp_path: Path) -> None:
    """Two variants that give the same answers, and one that gives their opposites."""
    model, other = run.path(onnx_path("fp32")), tmp_path / "other.onnx"
    graph = onnx.load(model)
    (head,) = [value for value in graph.graph.initializer if value.name == "identity"]
    head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), head.name))
    onnx.save(graph, other)
    variants = [
        gpu_engines.Variant("first", "ort-cpu", model),
        gpu_engines.Variant("again", "ort-cpu", model, "1 of 1"),
        gpu_engines.Variant("other", "ort-cpu", other),
    ]
    images = gpu_engines.images_of(run)
    assert images.shape == (gpu_engines.SHOWN_IMAGES, 3, SIZE, SIZE)
    report = gpu_engines.measure(variants, (3, SIZE, SIZE), batch_sizes=[1, 2], rounds=4)
    answers = gpu_engines.answers_of(variants, images, batch=8)
    assert answers["again"] == {"agreement": 1.0, "sqnr_db": float("inf")}
    # The error is twice the signal.
    assert answers["other"]["sqnr_db"] == pytest.approx(10 * np.log10(1 / 4))
    lines = gpu_engines.as_markdown(report, variants, answers).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "%" in line]
    rows = [row for row in rows if len(row) > 1]
    assert [row[:2] for row in rows] == [
        [batch, name] for batch in ("1", "2") for name in ("first", "again", "other")
    ]
    assert rows[0][5] == "1.00 (1.00 to 1.00)"
    assert rows[1][6:] == ["1 of 1", "100.0%", "inf dB"]


@pytest.mark.trt
@pytest.mark.gpu
def test_on_a_gpu(gpu_engines: ModuleType, run: RunDirectory, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments: list[Any] = [run.root, "--batch-sizes", 1, 2, "--rounds", 8, "--json", figures]
    assert gpu_engines.main([str(argument) for argument in arguments]) == 0
    content = json.loads(figures.read_text(encoding="utf-8"))
    assert len(content["benchmark"]["rows"]) == 12
    # A code may flip where a sum is taken in another order.
    assert all(near["agreement"] > 0.9 for near in content["answers"].values())
