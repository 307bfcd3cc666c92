"""A run with everything that a report shows, made by hand: no calibration, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from _helpers.runs import ONNX_PATH, make_manifest
from PIL import Image

from mimiq_runtime.benchmark import (
    BenchmarkChange,
    BenchmarkComparison,
    BenchmarkReport,
    BenchmarkRow,
    DeviceLatency,
    Speedup,
)
from mimiq_runtime.estimate import ESTIMATE_PATH, estimate_from_logits
from mimiq_runtime.gpu_monitor import GpuLoad
from mimiq_runtime.inside_view import (
    FULL_PRECISION,
    INSIDE_ATTENTION,
    INSIDE_RECORD,
    QUANTIZED,
    InsideRecord,
    LayerError,
)
from mimiq_runtime.parity import compare_logits
from mimiq_runtime.predictions import PREDICTIONS, PicturePredictions, answers_of
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ["red", "green", "blue"]
LAYERS = ["blocks.0.attn", "blocks.1.attn"]
PICTURES = ["a.png", "b.png", "c.png", "d.png"]
TRUTH = [0, 1, 2, 0]
EXACT = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9], [0, 3, 1]], dtype=np.float32)
OTHER = np.array([[9, 0, 0], [0, 9, 0], [2, 0, 1], [3, 0, 1]], dtype=np.float32)
"""The models disagree on c.png, where full precision is right, and on d.png, where it is not."""


def make_bare_run(root: Path, **manifest: Any) -> RunDirectory:
    """A run that was begun, and of which nothing is there yet."""
    return RunDirectory.create(root, make_manifest(**manifest))


def make_full_run(
    root: Path,
    *,
    labels: list[str] = LABELS,
    accuracy: float = 0.75,
    milliseconds: float = 2.0,
    pictures: list[str] = PICTURES,
    folder: str = "photographs",
    truth: list[int] | None = TRUTH,
) -> RunDirectory:
    """A run of which every section of the report has its source."""
    run = make_bare_run(root, labels=labels)
    run.write_tensors(run.QUANTIZED, {"head.weight": np.eye(3, dtype=np.float32)})
    _write_preview(run)
    _write_metrics(run)
    _write_inside(run)
    estimate = estimate_from_logits(
        EXACT, OTHER, source="mimiq", blocks={"blocks.0": 20.0, "blocks.1": 12.0}, seed=0
    )
    run.write_json(ESTIMATE_PATH, estimate.model_dump(mode="json"))
    for path, size in ((ONNX_PATH, 400), ("export/fp32/model.onnx", 1600)):
        run.path(path).parent.mkdir(parents=True)
        run.path(path).write_bytes(bytes(size))
        run.record_files(path)
    run.finish_stage("export/ort-cpu", seconds=1.5)
    predictions = PicturePredictions(
        folder=folder,
        pictures=pictures,
        labels=truth,
        answers={
            "full-precision": answers_of(EXACT, "f" * 64),
            "fake-quantized": answers_of(EXACT, "e" * 64),
            "ort-cpu": answers_of(OTHER, run.manifest.files[ONNX_PATH].sha256),
        },
    )
    run.write_json(PREDICTIONS, predictions.model_dump(mode="json"))
    run.write_json("parity.json", parity(accuracy, folder))
    run.write_json("bench.json", bench(milliseconds).model_dump(mode="json"))
    return run


def parity(accuracy: float, folder: str = "photographs") -> dict[str, Any]:
    """What ``validate`` writes, with a key that a report does not know."""
    same = compare_logits(EXACT, OTHER).model_dump(mode="json")
    return {
        "machine": {"cpu": "a CPU", "cores": "2"},
        "pictures": [folder, 4],
        "references": {"full-precision": {"top1": 0.9, "top5": 1.0}},
        "reference_agreement": {"full-precision": 1.0},
        "skipped": {"fake-quantized": "torch is not installed"},
        "engines": {
            "ort-cpu": {
                "session": {"provider": "CPUExecutionProvider", "libraries": {"onnxruntime": "1"}},
                "recorded": same,
                "parity": {"full-precision": same},
                "accuracy": {"top1": accuracy, "top5": 1.0},
                "gates": [
                    {"name": "max_drop", "limit": 1.0, "measured": 15.0, "passed": False},
                    {"name": "min_accuracy", "limit": 0.5, "measured": accuracy, "passed": True},
                ],
            }
        },
        "passed": False,
        "of a later version": {"anything": 1},
    }


def bench(milliseconds: float) -> BenchmarkReport:
    """FP32 takes 4 ms for an image with two threads, and twice as long with one."""
    return BenchmarkReport(
        machine={"cpu": "a CPU", "cores": "2"},
        sessions={},
        baseline="fp32 in ort-cpu",
        input_shape=(3, 8, 8),
        warmup=1,
        seed=0,
        rows=[
            _row(session, batch, threads, ms * batch * 2 / threads, 4.0 / ms)
            for batch in (1, 8)
            for threads in (1, 2)
            for session, ms in (("fp32 in ort-cpu", 4.0), ("w4a8 in ort-cpu", milliseconds))
        ],
    )


def bench_on_a_gpu() -> BenchmarkReport:
    """The same with what a GPU tells, and a comparison with an older one."""
    report = bench(2.0)
    device = DeviceLatency(
        compute_p50_ms=1.234,
        compute_p90_ms=1.3,
        compute_p99_ms=1.4,
        total_p50_ms=1.567,
        total_p90_ms=1.6,
        total_p99_ms=1.7,
    )
    load = GpuLoad(
        batch_size=8,
        samples=3,
        power_w=151.0,
        sm_clock_mhz=1980.0,
        sm_clock_min_mhz=None,
        memory_clock_mhz=2600.0,
        temperature_c=50.0,
        memory_used_mib=3000.0,
    )
    change = BenchmarkChange(
        session="w4a8 in ort-cpu",
        batch_size=8,
        threads=2,
        old_speedup=3.0,
        new_speedup=2.0,
        change=-1 / 3,
        regressed=True,
    )
    comparison = BenchmarkComparison(
        against="older.json", tolerance=0.1, same_machine=False, changes=[change], passed=False
    )
    return report.model_copy(
        update={
            "machine": {**report.machine, "gpu": "A GPU, driver 1.2"},
            "rows": [*report.rows[:-1], report.rows[-1].model_copy(update={"device": device})],
            "gpu": [load],
            "comparison": comparison,
        }
    )


def _row(session: str, batch: int, threads: int, ms: float, ratio: float) -> BenchmarkRow:
    return BenchmarkRow(
        session=session,
        batch_size=batch,
        threads=threads,
        rounds=5,
        mean_ms=ms,
        p50_ms=ms,
        p90_ms=1.1 * ms,
        p99_ms=1.2 * ms,
        images_per_second=1000 * batch / ms,
        speedup=Speedup(median=ratio, low=0.9 * ratio, high=1.1 * ratio),
    )


def _write_preview(run: RunDirectory) -> None:
    path = run.path("images/preview.png")
    path.parent.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    run.record_files("images/preview.png")


def _write_metrics(run: RunDirectory) -> None:
    for shard in range(2):
        steps = [
            {
                "step": step,
                "loss": 4.0 - step / 10,
                "head_similarity": 0.1 + step / 100 + shard / 50,
            }
            for step in (0, 10, 20)
        ]
        run.write_metrics("synthesis", shard, steps)
    for link, name in enumerate(("stem", "blocks.0", "tail")):
        errors = {"link": name, "error_before": 0.1, "error_after": 0.02}
        run.write_metrics("reconstruction", link, [errors])
    for epoch in range(3):
        losses = {"loss": 2.0 / (epoch + 1), "logit": 0.5, "structure": 0.1, "agreement": 0.8}
        run.write_metrics("distillation", epoch, [{"epoch": epoch, **losses}])


def _write_inside(run: RunDirectory) -> None:
    random = np.random.default_rng(1)
    maps = {
        side + layer: random.random((2, 4, 4)).astype(np.float32)
        for layer in LAYERS
        for side in (FULL_PRECISION, QUANTIZED)
    }
    pixels = random.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    run.write_tensors(INSIDE_ATTENTION, {"images": pixels, **maps})
    record = InsideRecord(
        quantized_sha256=run.manifest.files[run.QUANTIZED].sha256,
        images=16,
        source="held-out images (mimiq)",
        query="the class token, mean over the heads",
        attention=LAYERS,
        layers=[
            LayerError(layer="patch_embed.proj", kind="convolution", own_db=30.0, total_db=30.0),
            LayerError(layer="blocks.0.attn.qkv", kind="linear", own_db=22.0, total_db=None),
            LayerError(layer="blocks.0.attn", kind="attention", own_db=11.0, total_db=10.0),
            LayerError(layer="head", kind="linear", own_db=None, total_db=9.0),
        ],
    )
    run.write_json(INSIDE_RECORD, record.model_dump(mode="json"))
