"""What the time of one model goes into: milliseconds a batch by operator and kernel.

    python benchmarks/cpu_profile.py {ort-cpu,openvino} MODEL.onnx [--batch-size 8] [--threads 1]

Prints a Markdown table, the longest first: the engine's own measurement, summed over the nodes
that have the same operator and run by the same kernel. Measuring costs time itself, so that the
sum is somewhat more than the latency without it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

Costs = dict[tuple[str, str], float]
"""Milliseconds a batch, by operator and kernel."""

RUNS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", choices=PROFILERS)
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=224)
    chosen = parser.parse_args()
    shape = (chosen.batch_size, 3, chosen.image_size, chosen.image_size)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    costs = PROFILERS[chosen.engine](chosen.model, images, chosen.threads)
    total = sum(costs.values())
    print("| operator | kernel | ms | share |")
    print("|---|---|---|---|")
    for (operator, kernel), cost in sorted(costs.items(), key=lambda item: -item[1]):
        if cost >= total / 200:
            print(f"| {operator} | {kernel} | {cost:.1f} | {cost / total:.0%} |")
    print(f"| all | | {total:.1f} | |")


def profile_onnxruntime(model: Path, images: np.ndarray, threads: int) -> Costs:
    """By ONNX Runtime's own profile; the first run is left out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: images}
        for _ in range(RUNS + 1):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs = [event for event in events if event["name"] == "model_run"]
    begin = runs[1]["ts"]
    costs: Costs = defaultdict(float)
    for event in events:
        if (
            event["cat"] == "Node"
            and event["name"].endswith("_kernel_time")
            and event["ts"] > begin
        ):
            key = (event["args"]["op_name"], event["args"]["provider"])
            costs[key] += event["dur"] / 1000 / RUNS
    return costs


def profile_openvino(model: Path, images: np.ndarray, threads: int) -> Costs:
    """By OpenVINO's performance counters, in single precision where nothing is quantized."""
    import openvino

    settings = {
        "PERF_COUNT": True,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    request.infer([images])
    costs: Costs = defaultdict(float)
    for _ in range(RUNS):
        request.infer([images])
        for node in request.get_profiling_info():
            costs[node.node_type, node.exec_type] += node.real_time.total_seconds() * 1000 / RUNS
    return costs


PROFILERS = {"ort-cpu": profile_onnxruntime, "openvino": profile_openvino}

if __name__ == "__main__":
    main()
