"""Timing the engines of a run beside the full-precision baseline."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from mimiq_deploy.engine_models import engine_model
from mimiq_deploy.exporting import BASELINE, HALF_BASELINE
from mimiq_runtime.benchmark import BenchmarkReport, benchmark_sessions, mirrored_openings
from mimiq_runtime.benchmark_compare import check_comparable, compare_benchmarks, read_benchmark
from mimiq_runtime.errors import InvalidInputError, RunDirectoryError
from mimiq_runtime.machine import usable_cores
from mimiq_runtime.memory_probe import PeakMemory, measure_peak_memory
from mimiq_runtime.progress import progress_bar
from mimiq_runtime.run_directory import writes_run
from mimiq_runtime.session import needs_gpu, open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mimiq_runtime.run_directory import RunDirectory
    from mimiq_runtime.session import Session

__all__ = ["OPENINGS", "benchmark_run"]

OPENINGS = 4
"""How often each model is opened; see :func:`mimiq_runtime.benchmark.mirrored_openings`."""

REPORT = "bench.json"


@writes_run("bench")
def benchmark_run(
    run: RunDirectory,
    engines: Sequence[str],
    *,
    batch_sizes: Sequence[int],
    threads: Sequence[int] = (),
    rounds: int,
    seconds: float | None,
    warmup: int = 10,
    baselines: Sequence[str] = (),
    compare: Path | None = None,
    tolerance: float = 0.1,
) -> BenchmarkReport:
    """Time engines in turn with the unquantized model; write ``bench.json``.

    Args:
        run: A run that was exported for each engine.
        engines: Names of the engines; the baselines run in the first one.
        batch_sizes: Images in one call.
        threads: Numbers of CPU threads, each measured on its own; that of all cores if empty.
        rounds: Timed calls of each session, batch size and number of threads.
        seconds: End the rounds of a batch size and a number of threads after this time.
        warmup: Calls of each session and batch size before the clock is started.
        baselines: Exports that the engines are compared with, the first one by ratios; ``fp32``
            if empty, and ``fp16`` where a GPU runs and there is one.
        compare: An older ``bench.json`` that speedups may not fall behind.
        tolerance: Share of the older speedup that may be lost.

    Raises:
        InvalidInputError: The run is not exported, a number is out of range, several numbers of
            threads are asked of a GPU, or the older benchmark cannot be compared.
    """
    models = _models(run, list(dict.fromkeys(engines)), list(dict.fromkeys(baselines)))
    input_shape = run.manifest.preprocessing.input_size
    numbers = _numbers_of_threads(engines, threads)
    older = None
    if compare is not None:
        # Read and checked first: it may be the file that is written at the end, and who mistypes
        # an option should not wait for a measurement.
        older = read_benchmark(compare)
        check_comparable(
            older,
            against=str(compare),
            tolerance=tolerance,
            baseline=next(iter(models)),
            sessions=list(models),
            batch_sizes=batch_sizes,
            threads=numbers,
        )
    with progress_bar("benchmark", rounds * len(batch_sizes) * len(numbers)) as advance:
        report = benchmark_sessions(
            {number: mirrored_openings(_openers(models, number), OPENINGS) for number in numbers},
            batch_sizes=batch_sizes,
            input_shape=input_shape,
            rounds=rounds,
            seconds=seconds,
            warmup=warmup,
            watch_gpu=any(needs_gpu(engine) for engine in engines),
            advance=advance,
        )
    additions: dict[str, Any] = {"memory": _memory(models, batch_sizes, input_shape, numbers)}
    if older is not None:
        additions["comparison"] = compare_benchmarks(
            report, older, against=str(compare), tolerance=tolerance
        )
    report = report.model_copy(update=additions)
    run.write_json(REPORT, report.model_dump(mode="json"))
    return report


def _models(
    run: RunDirectory, engines: Sequence[str], baselines: Sequence[str]
) -> dict[str, tuple[str, Path]]:
    """Engine and file of each session by its name, the baselines first.

    The baselines run in the first engine: the ratio is that of the models alone.
    """
    first = engines[0]
    models = {
        f"{target} in {first}": (first, engine_model(run, first, target=target))
        for target in baselines or _usual_baselines(run, first)
    }
    for engine in engines:
        models[f"{run.manifest.bits} in {engine}"] = (engine, engine_model(run, engine))
    return models


def _numbers_of_threads(engines: Sequence[str], threads: Sequence[int]) -> list[int]:
    numbers = list(dict.fromkeys(threads)) or [usable_cores()]
    on_gpu = [engine for engine in engines if needs_gpu(engine)]
    if len(numbers) > 1 and on_gpu:
        raise InvalidInputError(
            f"Expected one number of CPU threads for {', '.join(on_gpu)}, which runs on a GPU, got "
            f"{', '.join(map(str, numbers))}; measure engines on a CPU apart."
        )
    return numbers


def _openers(models: dict[str, tuple[str, Path]], threads: int) -> dict[str, Callable[[], Session]]:
    return {
        name: functools.partial(open_session, engine, model, threads=threads)
        for name, (engine, model) in models.items()
    }


def _usual_baselines(run: RunDirectory, engine: str) -> list[str]:
    if not needs_gpu(engine):
        return [BASELINE]
    # On a GPU half precision is what INT8 has to beat; a plan of it may not have been built.
    try:
        engine_model(run, engine, target=HALF_BASELINE)
    except RunDirectoryError:
        return [BASELINE]
    return [BASELINE, HALF_BASELINE]


def _memory(
    models: dict[str, tuple[str, Path]],
    batch_sizes: Sequence[int],
    input_shape: tuple[int, int, int],
    numbers: Sequence[int],
) -> list[PeakMemory]:
    return [
        row
        for threads in numbers
        for name, (engine, model) in models.items()
        for row in measure_peak_memory(
            name,
            engine,
            model,
            batch_sizes=batch_sizes,
            input_shape=input_shape,
            threads=threads,
        )
    ]
