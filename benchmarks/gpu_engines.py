"""Speed of one model on an NVIDIA GPU: FP32, FP16 and INT8 in ONNX Runtime and in TensorRT.

    python benchmarks/gpu_engines.py RUN [--batch-sizes 1 8 32] [--rounds 400] [--json FILE]

Needs an NVIDIA GPU, and the extras `ort-gpu` and `trt`; without them it says what is missing and
ends with exit code 3. It has not been run on a GPU yet: a test runs its measuring and its table on
a CPU.

RUN is a calibrated run. What it has not exported is exported (which needs the extra `export`),
plans are built into a temporary folder, and all models are measured in one benchmark: in turn, each
opened four times, with times by CUDA events where the engine has them, and power and clocks by
`nvidia-smi`. Lock the clocks before (`nvidia-smi -lgc MHZ`). Beside the speed stands how far the
answers are from those of the first row, on the run's own images: a wrong engine is fast, too.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_deploy.benchmarking import OPENINGS
from mimiq_deploy.cli import COMMANDS
from mimiq_deploy.exporting import onnx_path
from mimiq_runtime.benchmark import BenchmarkReport, benchmark_sessions, mirrored_openings
from mimiq_runtime.doctor import diagnose, unmet
from mimiq_runtime.engine_record import BuildOptions
from mimiq_runtime.input_form import InputForm, random_images
from mimiq_runtime.machine import usable_cores
from mimiq_runtime.metrics import agreement, sqnr_db
from mimiq_runtime.run_directory import RunDirectory
from mimiq_runtime.session import open_session, target_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NEEDED = ("ort-cuda", "trt", "build-trt")
TARGETS = ("ort-cuda", "trt")
"""Each of them is exported with the models in FP32 and FP16 beside it."""
IMAGES = "images/shard-00000.safetensors"
SHOWN_IMAGES = 64
NOT_HERE = 3


@dataclass(frozen=True)
class Variant:
    """One row: a model's file and what runs it.

    Attributes:
        name: For the table.
        engine: One of our engines.
        model: The ONNX file, or the plan.
        proved: How many quantized products are shown to run in INT8; empty where it is not told.
    """

    name: str
    engine: str
    model: Path
    proved: str = ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args(arguments)
    lacking = unmet(diagnose(COMMANDS), NEEDED)
    if lacking:
        reasons = "; ".join(f"{item.name}: {', '.join(item.missing)}" for item in lacking)
        print(f"This benchmark needs an NVIDIA GPU and what runs on it: {reasons}", file=sys.stderr)
        return NOT_HERE
    run = RunDirectory.open(given.run)
    with tempfile.TemporaryDirectory() as folder:
        variants = make_variants(run, Path(folder), most=max(given.batch_sizes))
        size = run.manifest.preprocessing.input_size
        report = measure(variants, size, batch_sizes=given.batch_sizes, rounds=given.rounds)
        answers = answers_of(variants, images_of(run), batch=min(given.batch_sizes))
    print(as_markdown(report, variants, answers))
    if given.json:
        content = {"benchmark": report.model_dump(mode="json"), "answers": answers}
        given.json.write_text(json.dumps(content, indent=2))
    return 0


def make_variants(run: RunDirectory, folder: Path, *, most: int) -> list[Variant]:
    """Every row's model: exports of the run, and plans that are built here.

    Args:
        run: A calibrated run.
        folder: Where the plans go.
        most: Largest batch of the plans.
    """
    from mimiq_deploy.building import build_model

    for target in TARGETS:
        if onnx_path(target) not in run.manifest.files:
            from mimiq_deploy.exporting import export_run

            export_run(run, target)
    bits = run.manifest.bits
    models = {"FP32": "fp32", "FP16": "fp16", bits: target_of("ort-cuda")}
    variants = [
        Variant(f"ONNX Runtime CUDA, {name}", "ort-cuda", run.path(onnx_path(target)))
        for name, target in models.items()
    ]
    for name, target in {**models, bits: target_of("trt")}.items():
        record, plan = build_model(
            run.path(onnx_path(target)),
            BuildOptions(max_batch=most),
            output=folder / target,
            # What is not proved is told in the table.
            allow_floating_point=True,
        )
        products = record.precision.products
        proved = f"{len(products) - len(record.precision.unproved())} of {len(products)}"
        variants.append(Variant(f"TensorRT, {name}", "trt", plan, proved if products else ""))
    return variants


def measure(
    variants: Sequence[Variant],
    size: tuple[int, int, int],
    *,
    batch_sizes: Sequence[int],
    rounds: int,
) -> BenchmarkReport:
    """Time all variants in turn.

    Args:
        variants: The first one is what the others are compared with.
        size: Channels, height and width.
        batch_sizes: Images in one call.
        rounds: Timed calls of each variant and batch size.
    """
    threads = usable_cores()
    openers = {
        variant.name: functools.partial(
            open_session, variant.engine, variant.model, threads=threads
        )
        for variant in variants
    }
    return benchmark_sessions(
        {threads: mirrored_openings(openers, OPENINGS)},
        batch_sizes=batch_sizes,
        input_shape=size,
        rounds=rounds,
        watch_gpu=True,
    )


def images_of(run: RunDirectory) -> NDArray[np.float32]:
    """Normalised images (N, C, H, W): the run's own, or noise where it has none."""
    from mimiq_runtime.preprocessing import normalise

    if IMAGES not in run.manifest.files:
        size = run.manifest.preprocessing.input_size
        return random_images(InputForm.NORMALISED, SHOWN_IMAGES, size, seed=0)
    pixels = run.read_tensors(IMAGES, made_by="mimiq-deploy calibrate")["images"]
    return normalise(pixels[:SHOWN_IMAGES], run.manifest.preprocessing)


def answers_of(
    variants: Sequence[Variant], images: NDArray[np.float32], *, batch: int
) -> dict[str, dict[str, float]]:
    """How near the logits of each variant are to those of the first one."""
    logits = {}
    for variant in variants:
        with open_session(variant.engine, variant.model) as session:
            starts = range(0, len(images) - batch + 1, batch)
            logits[variant.name] = np.concatenate(
                [session.run(images[start : start + batch]) for start in starts]
            )
    first = next(iter(logits.values()))
    return {
        name: {"agreement": agreement(first, own), "sqnr_db": sqnr_db(first, own)}
        for name, own in logits.items()
    }


def as_markdown(
    report: BenchmarkReport,
    variants: Sequence[Variant],
    answers: dict[str, dict[str, float]],
) -> str:
    """The machine, and a table with a row for each batch size and variant."""
    proved = {variant.name: variant.proved for variant in variants}
    lines = [
        f"{name}: {info.device}, " + ", ".join(f"{k} {v}" for k, v in info.libraries.items())
        for name, info in report.sessions.items()
    ]
    lines += ["", f"Times as fast as {report.baseline}, with its 95 % interval.", ""]
    titles = ["batch", "variant", "ms a batch", "ms on the GPU", "images a second", "times as fast"]
    titles += ["INT8 proved", "same answers", "SQNR"]
    lines += [_row(titles), _row(["---"] * len(titles))]
    for row in report.rows:
        speedup, near = row.speedup, answers[row.session]
        figures: list[Any] = [
            row.batch_size,
            row.session,
            f"{row.p50_ms:.3f}",
            "" if row.device is None else f"{row.device.compute_p50_ms:.3f}",
            f"{row.images_per_second:.0f}",
            f"{speedup.median:.2f} ({speedup.low:.2f} to {speedup.high:.2f})",
            proved[row.session],
            f"{near['agreement']:.1%}",
            f"{near['sqnr_db']:.1f} dB",
        ]
        lines.append(_row(figures))
    for load in report.gpu:
        lines += ["", f"Batch {load.batch_size}: {_load(load.model_dump())}"]
    return "\n".join(lines)


def _load(facts: dict[str, Any]) -> str:
    known = {name: value for name, value in facts.items() if value is not None}
    return ", ".join(f"{name} {value}" for name, value in known.items() if name != "batch_size")


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
