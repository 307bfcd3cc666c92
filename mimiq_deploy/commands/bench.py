"""``mimiq-deploy bench``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mimiq_deploy.commands.options import (
    engines_option,
    json_option,
    output_console,
    print_json,
    run_argument,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_runtime.benchmark import BenchmarkReport


@click.command(short_help="Measure latency and throughput beside the baselines")
@run_argument
@engines_option
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    default=(1, 8),
    show_default=True,
    type=click.IntRange(min=1),
    help="Images in one call; repeatable.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores without it.")
@click.option("--rounds", default=50, show_default=True, type=click.IntRange(min=1))
@click.option("--seconds", type=float, help="End a batch size after this time.")
@json_option
def bench(
    run: Path,
    engines: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    threads: int | None,
    rounds: int,
    seconds: float | None,
    as_json: bool,
) -> None:
    """Time the engines of RUN in turn with the FP32 ONNX of the same model.

    The result is written to bench.json in the run. Ratios above 1 mean faster than FP32.
    """
    from mimiq_deploy.benchmarking import benchmark_run
    from mimiq_runtime.run_directory import RunDirectory

    report = benchmark_run(
        RunDirectory.open(run),
        engines,
        batch_sizes=batch_sizes,
        threads=threads,
        rounds=rounds,
        seconds=seconds,
    )
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _print(report)


def _print(report: BenchmarkReport) -> None:
    from rich.table import Table

    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    table = Table(
        "batch", "model", "p50 ms", "p90 ms", "p99 ms", "images/s", "times as fast", "95 % interval"
    )
    for row in report.rows:
        table.add_row(
            str(row.batch_size),
            row.session,
            f"{row.p50_ms:.2f}",
            f"{row.p90_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.images_per_second:.1f}",
            f"{row.speedup.median:.2f}",
            f"{row.speedup.low:.2f} to {row.speedup.high:.2f}",
        )
    console = output_console()
    console.print(table)
    console.print(machine)
