"""The whole story on built-in real data: what quantization costs, and what MimiQ gives back."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mimiq_deploy.benchmarking import benchmark_run
from mimiq_deploy.calibration import CalibrationRequest, calibrate
from mimiq_deploy.demo.digits import load_digits_split, write_image_folder
from mimiq_deploy.exporting import BASELINE, export_run, onnx_path
from mimiq_deploy.recipe_loading import load_recipe
from mimiq_deploy.validation import (
    FAKE_QUANTIZED,
    FULL_PRECISION,
    GateLimits,
    ValidationReport,
    validate_run,
)
from mimiq_runtime.atomic import write_json
from mimiq_runtime.output_file import check_output_folder
from mimiq_runtime.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mimiq_runtime.benchmark import BenchmarkReport
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["DemoReport", "DemoRow", "tell_story"]

BITS, ENGINE, BATCH_SIZES = "w4a4", "ort-cpu", (1, 64)

PLAIN_NOISE = (
    "name=plain-noise",
    "synthesis.source=noise",
    "distillation.epochs=0",
    "quantization.centre_attention=false",
    "quantization.equalise_channels=false",
    "quantization.skewed_grids=false",
    "quantization.activation_range=minmax",
    "quantization.weight_range=minmax",
)
"""What is left of the recipe when everything that the method adds is taken out."""


class DemoRow(Schema):
    """One line of the result.

    Attributes:
        model: Which model, and what ran it.
        top1: Accuracy on the held-out digits, 0 to 1.
        agreement: Share of them with the same answer as the full-precision model, 0 to 1.
        megabytes: Size of the ONNX file, in 10^6 bytes; None for a model in torch.
        latency_ms: Median latency of one image in ms; None where it was not measured.
        times_as_fast: Against the full-precision model, by batch size; empty where not measured.
    """

    model: str
    top1: float
    agreement: float
    megabytes: float | None = None
    latency_ms: float | None = None
    times_as_fast: dict[int, float] = Field(default_factory=dict)


class DemoReport(Schema):
    """The content of ``demo.json``.

    Attributes:
        pictures: Number of held-out digits.
        rows: The result.
        machine: Where it was measured.
    """

    pictures: int
    rows: list[DemoRow]
    machine: dict[str, str]


def tell_story(folder: Path, *, say: Callable[[str], None]) -> DemoReport:
    """Quantize the built-in model twice, export it, run it, and compare.

    What an earlier call finished in the same folder is kept.

    Args:
        folder: Where the two run directories and the held-out digits are left.
        say: Told what is being done, one sentence at a time.

    Raises:
        MissingDependencyError: An extra is not installed.
        InvalidInputError: The folder holds something else, or cannot be written.
    """
    check_output_folder(folder, "--output")
    digits = load_digits_split()
    pictures = folder / "held-out-digits"
    say(f"1/5 {len(digits.test_labels)} handwritten digits that the model never saw: {pictures}")
    write_image_folder(digits.test_images, digits.test_labels, pictures)
    say(f"2/5 {BITS.upper()} with plain ranges from noise")
    noise = _make_run(folder / "noise-w4a4", PLAIN_NOISE)
    say(f"3/5 {BITS.upper()} with MimiQ: images from the weights alone, then distillation")
    mimiq = _make_run(folder / "mimiq-w4a4", ())
    say("4/5 accuracy on the held-out digits, in torch and in ONNX Runtime")
    reports = {
        run.root.name: validate_run(run, [ENGINE], pictures=pictures, limits=GateLimits())
        for run in (noise, mimiq)
    }
    say("5/5 speed in ONNX Runtime, in turn with the full-precision model")
    speed = benchmark_run(mimiq, [ENGINE], batch_sizes=BATCH_SIZES, rounds=100, seconds=5)
    report = DemoReport(
        pictures=len(digits.test_labels),
        rows=_rows(noise, mimiq, reports, speed),
        machine=speed.machine,
    )
    write_json(folder / "demo.json", report.model_dump(mode="json"))
    return report


def demo_model() -> tuple[dict[str, Any], Path]:
    """Description and weights of the built-in model, as ``train.py`` wrote them."""
    from pathlib import Path as FilePath

    folder = FilePath(str(resources.files("mimiq_deploy.demo")))
    description = json.loads((folder / "digits_vit.json").read_text(encoding="utf-8"))
    return description, folder / "digits_vit.safetensors"


def _make_run(output: Path, settings: tuple[str, ...]) -> RunDirectory:
    description, weights = demo_model()
    request = CalibrationRequest(
        model=description["model"],
        recipe=load_recipe("demo", bits=BITS, settings=settings),
        checkpoint=weights,
        num_classes=description["num_classes"],
        model_arguments=description["model_args"],
        preprocessing=description["preprocessing"],
        labels=description["labels"],
    )
    run = calibrate(request, output, resume=True)
    if not run.stage_is_done(f"export/{ENGINE}"):
        export_run(run, ENGINE)
    return run


def _rows(
    noise: RunDirectory,
    mimiq: RunDirectory,
    reports: dict[str, ValidationReport],
    speed: BenchmarkReport,
) -> list[DemoRow]:
    plain, ours = reports[noise.root.name], reports[mimiq.root.name]
    measured = {
        session: [row for row in speed.rows if row.session == session] for session in speed.sessions
    }
    baseline, engine = measured.values()
    return [
        DemoRow(
            model="FP32, ONNX Runtime",
            top1=ours.references[FULL_PRECISION].top1,
            agreement=1.0,
            megabytes=_megabytes(mimiq, BASELINE),
            latency_ms=baseline[0].p50_ms,
            times_as_fast={row.batch_size: row.speedup.median for row in baseline},
        ),
        _engine_row("W4A4 plain on noise, ONNX Runtime", noise, plain),
        DemoRow(
            model="W4A4 MimiQ, fake-quantized torch",
            top1=ours.references[FAKE_QUANTIZED].top1,
            agreement=ours.reference_agreement[FAKE_QUANTIZED],
        ),
        _engine_row("W4A4 MimiQ, ONNX Runtime", mimiq, ours).model_copy(
            update={
                "latency_ms": engine[0].p50_ms,
                "times_as_fast": {row.batch_size: row.speedup.median for row in engine},
            }
        ),
    ]


def _engine_row(name: str, run: RunDirectory, report: ValidationReport) -> DemoRow:
    engine = report.engines[ENGINE]
    assert engine.accuracy is not None  # there were pictures
    return DemoRow(
        model=name,
        top1=engine.accuracy.top1,
        agreement=engine.parity[FULL_PRECISION].agreement,
        megabytes=_megabytes(run, ENGINE),
    )


def _megabytes(run: RunDirectory, target: str) -> float:
    return run.manifest.files[onnx_path(target)].bytes / 1e6
