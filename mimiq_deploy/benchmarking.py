"""Timing the engines of a run beside the full-precision baseline."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from mimiq_deploy.exporting import BASELINE, onnx_path
from mimiq_runtime.benchmark import BenchmarkReport, benchmark_sessions
from mimiq_runtime.progress import progress_bar
from mimiq_runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["benchmark_run"]

REPORT = "bench.json"


def benchmark_run(
    run: RunDirectory,
    engines: Sequence[str],
    *,
    batch_sizes: Sequence[int],
    threads: int | None,
    rounds: int,
    seconds: float | None,
) -> BenchmarkReport:
    """Time engines in turn with the FP32 ONNX of the same model; write ``bench.json``.

    Args:
        run: A run that was exported for each engine.
        engines: Names of the engines.
        batch_sizes: Images in one call.
        threads: CPU threads of an engine; None for all cores.
        rounds: Timed calls of each session and batch size.
        seconds: End the rounds of a batch size after this time.

    Raises:
        InvalidInputError: The run is not exported, or a number is out of range.
    """
    with contextlib.ExitStack() as stack:
        sessions = {}
        # The baseline runs in the first engine: the ratio is that of the models alone.
        for name, engine, target in [
            (f"{BASELINE} in {engines[0]}", engines[0], BASELINE),
            *((f"{run.manifest.bits} in {engine}", engine, engine) for engine in engines),
        ]:
            model = run.existing(
                onnx_path(target), made_by=f"mimiq-deploy export {run.root} --target {engine}"
            )
            sessions[name] = stack.enter_context(open_session(engine, model, threads=threads))
        with progress_bar("benchmark", rounds * len(batch_sizes)) as advance:
            report = benchmark_sessions(
                sessions,
                batch_sizes=batch_sizes,
                input_shape=run.manifest.preprocessing.input_size,
                rounds=rounds,
                seconds=seconds,
                advance=advance,
            )
    run.write_json(REPORT, report.model_dump(mode="json"))
    return report
