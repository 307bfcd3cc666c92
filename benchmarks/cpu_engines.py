"""Speed of one model in every CPU engine, as ratios against ONNX Runtime in FP32.

    python benchmarks/cpu_engines.py RUN [--rounds 5] [--json FILE]

RUN is a calibrated run of 224 pixels, such as that of

    mimiq-deploy calibrate deit_tiny_patch16_224 --checkpoint FILE --bits w8a8 -o RUN

The script exports a copy of it in a temporary folder for each target and scope, so that RUN and
its exports stay as they are, quantizes the same FP32 ONNX with ONNX Runtime's own
`quantize_static`, and times all of them: every measurement is a process of its own, the variants
take turns, and a round's ratio compares processes that ran within the same minute. Printed are
medians over the rounds, with the smallest and the largest ratio.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mimiq_runtime.run_directory import RunDirectory

BASELINE = "ONNX Runtime FP32"
SECONDS = 2.0
"""How long one process measures, after its warm-up."""


@dataclass(frozen=True)
class Variant:
    """One row: a model file and what runs it."""

    name: str
    engine: str
    model: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        engine, model, threads, batch = arguments.worker
        print(json.dumps(measure(engine, Path(model), int(threads), int(batch))))
        return
    with tempfile.TemporaryDirectory() as folder:
        variants = list(build(arguments.run, Path(folder)))
        settings = [(t, b) for t in arguments.threads for b in arguments.batch_sizes]
        latencies = {
            setting: take_turns(variants, *setting, rounds=arguments.rounds) for setting in settings
        }
    rows = summarise(latencies)
    print(as_markdown(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def build(run: Path, folder: Path) -> Iterator[Variant]:
    """Every variant's model file, made from one run."""
    from mimiq_deploy.exporting import export_run, onnx_path
    from mimiq_runtime.run_directory import RunDirectory
    from mimiq_runtime.scope import Scope

    # Exports are written into a run; that of the user keeps its own.
    directory = RunDirectory.open(shutil.copytree(RunDirectory.open(run).root, folder / "run"))
    made: list[Variant] = []
    for target in ("ort-cpu", "openvino"):
        for scope in Scope:
            export_run(directory, target, scope=scope)
            model = folder / f"{target}-{scope}.onnx"
            model.write_bytes(directory.path(onnx_path(target)).read_bytes())
            made.append(Variant(f"mimiq-deploy {target}, scope {scope}", target, model))
    fp32 = folder / "fp32.onnx"
    fp32.write_bytes(directory.path(onnx_path("fp32")).read_bytes())
    yield Variant(BASELINE, "ort-cpu", fp32)
    yield from made
    for variant in made:
        if variant.engine == "openvino":
            name = f"{variant.name}, OpenVINO's default precision"
            yield Variant(name, "openvino-default", variant.model)
    yield from quantized_by_onnxruntime(fp32, directory, folder)
    yield Variant("OpenVINO FP32 model, its default precision", "openvino-default", fp32)
    yield Variant("OpenVINO FP32 model in FP32", "openvino", fp32)


def quantized_by_onnxruntime(fp32: Path, run: RunDirectory, folder: Path) -> Iterator[Variant]:
    """What users of `quantize_static` get, by its defaults and by its best settings."""
    from onnxruntime.quantization import QuantType, quantize_static

    from mimiq_runtime.preprocessing import normalise

    pixels = run.read_tensors("images/shard-00000.safetensors", made_by="calibrate")["images"]
    images = normalise(pixels[:8], run.manifest.preprocessing)
    activations = {"S8S8": QuantType.QInt8, "U8S8": QuantType.QUInt8}
    unquantized_outputs = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}
    settings = {
        "defaults": {},
        "MatMul outputs in float": unquantized_outputs,
        "MatMul outputs in float, linear": {**unquantized_outputs, "MatMulConstBOnly": True},
    }
    for types, activation in activations.items():
        for label, options in settings.items():
            model = folder / f"{types}-{label}.onnx".replace(" ", "-")
            quantize_static(
                fp32,
                model,
                calibration_data_reader=Feed(images),
                per_channel=True,
                activation_type=activation,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm", "Conv"] if options else None,
                extra_options=dict(options),
            )
            yield Variant(f"quantize_static {types}, {label}", "ort-cpu", model)


class Feed:
    """Calibration images, one at a time, in the form `quantize_static` asks for."""

    def __init__(self, images: np.ndarray) -> None:
        self._rows = iter(images[:, None])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image as a batch of one; None after the last."""
        row = next(self._rows, None)
        return None if row is None else {"images": row}


def take_turns(
    variants: list[Variant], threads: int, batch: int, *, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds a batch of every variant, one figure a round."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for variant in variants:
            command = [sys.executable, __file__, "-", "--worker"]
            command += [variant.engine, str(variant.model), str(threads), str(batch)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[variant.name].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def measure(engine: str, model: Path, threads: int, batch: int) -> float:
    """Median milliseconds a batch in this process."""
    images = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    run = opened(engine, model, threads)
    for _ in range(5):
        run(images)
    taken = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(taken) < 10:
        begun = time.perf_counter()
        run(images)
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken)


def opened(engine: str, model: Path, threads: int) -> Callable[[np.ndarray], object]:
    """A function that runs the model."""
    if engine == "openvino-default":
        import openvino

        compiled = openvino.Core().compile_model(
            model, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        )
        return lambda images: compiled([images])
    from mimiq_runtime.session import open_session

    return open_session(engine, model, threads=threads).run


def summarise(latencies: dict[tuple[int, int], dict[str, list[float]]]) -> list[dict[str, object]]:
    rows = []
    for (threads, batch), found in latencies.items():
        for name, taken in found.items():
            ratios = [base / own for base, own in zip(found[BASELINE], taken, strict=True)]
            rows.append(
                {
                    "threads": threads,
                    "batch": batch,
                    "variant": name,
                    "ms": statistics.median(taken),
                    "ratio": statistics.median(ratios),
                    "lowest": min(ratios),
                    "highest": max(ratios),
                }
            )
    return rows


def as_markdown(rows: list[dict[str, object]]) -> str:
    lines = [
        "| threads | batch | variant | ms a batch | times as fast as FP32 | lowest to highest |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = "{lowest:.2f} to {highest:.2f}".format(**row)
        figures = "{ms:.1f} | {ratio:.2f}".format(**row)
        lines.append(
            "| {threads} | {batch} | {variant} | ".format(**row) + f"{figures} | {spread} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
