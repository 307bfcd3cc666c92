"""File size, load time and latency of one model with int8 and with packed INT4 weights.

    python benchmarks/packed_int4.py [--run RUN] [--bits w4a8] [--loads 41]

RUN is a calibrated run with weights of at most 4 bits; it is exported anew to ``ort-cpu``, twice,
and keeps the packed model. Without it a run of DeiT-T's shape with random weights is made. The
files are loaded and run in turn, on one thread, from a warm disk cache; the figures are medians
with the quartiles. The logits of both must be the same bits, and so must the operators be that
ONNX Runtime runs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from random_runs import make_random_run

from mimiq_deploy.exporting import export_run, onnx_path
from mimiq_runtime.machine import describe_machine
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL, TARGET = "deit_tiny_patch16_224", "ort-cpu"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--loads", type=int, default=41)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="packed-int4-") as name:
        folder = Path(name)
        if arguments.run is None:
            make_random_run(MODEL, arguments.bits, folder)
        run = RunDirectory.open(arguments.run or folder / "run")
        print(f"{run.manifest.model.name}, {run.manifest.bits}: {describe_machine()}")
        print(f"ONNX Runtime {onnxruntime.__version__}")
        _measure(_export(run, folder), run.manifest.preprocessing.input_size, arguments.loads)
    return 0


def _export(run: RunDirectory, folder: Path) -> dict[str, Path]:
    files = {}
    for name, packed in (("int8", False), ("packed INT4", True)):
        export_run(run, TARGET, packed_int4=packed)
        files[name] = Path(shutil.copy(run.path(onnx_path(TARGET)), folder / f"{name}.onnx"))
    return files


def _measure(files: dict[str, Path], size: tuple[int, int, int], loads: int) -> None:
    feeds = {"images": np.random.default_rng(0).standard_normal((1, *size), dtype=np.float32)}
    sessions = {name: _load(path) for name, path in files.items()}
    logits = [session.run(None, feeds)[0] for session in sessions.values()]
    operators = [_operators_that_run(path) for path in files.values()]
    print(f"same logits: {np.array_equal(*logits)}; same operators: {operators[0] == operators[1]}")
    products = ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "MatMul", "Gemm", "Conv", "Cast")
    print("operators:", {name: operators[1][name] for name in products})
    load_ms = _in_turn({name: lambda path=path: _load(path) for name, path in files.items()}, loads)
    run_ms = _in_turn({name: lambda s=s: s.run(None, feeds) for name, s in sessions.items()}, loads)
    for name, path in files.items():
        print(
            f"{name}: {path.stat().st_size / 1e6:.2f} MB, load {_quartiles(load_ms[name])} ms, "
            f"batch 1 {_quartiles(run_ms[name])} ms"
        )
    for what, times in (("load", load_ms), ("batch 1", run_ms)):
        ratios = np.divide(*times.values())
        print(f"{what}, int8 / packed INT4: {_quartiles(ratios)}")


def _load(path: Path, optimized: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        # EXTENDED holds all fusions; ALL adds layouts of this very processor, and a warning.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _operators_that_run(path: Path) -> Counter[str]:
    optimized = path.with_suffix(".optimized")
    _load(path, optimized)
    return Counter(node.op_type for node in onnx.load(optimized).graph.node)


def _in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of each call; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        order = list(calls) if index % 2 else list(calls)[::-1]
        for name in order:
            begun = time.perf_counter()
            calls[name]()
            times[name].append(1e3 * (time.perf_counter() - begun))
    return {name: np.array(values[1:]) for name, values in times.items()}


def _quartiles(values: np.ndarray) -> str:
    low, median, high = np.percentile(values, [25, 50, 75])
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
