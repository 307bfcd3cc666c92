"""``mimiq-deploy bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimiq_deploy.commands.gate_reports import GateReports, junit_option, markdown_option
from mimiq_deploy.commands.options import (
    check_partner,
    engines_option,
    gates_option,
    json_option,
    output_console,
    print_json,
    run_argument,
    was_typed,
)

if TYPE_CHECKING:
    from mimiq_runtime.benchmark import BenchmarkComparison, BenchmarkReport

REGRESSED = 1
"""Exit code when a speedup is lost by more than the tolerance."""


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
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(min=1),
    help="CPU threads; repeatable on CPUs; all cores without it.",
)
@click.option("--rounds", default=50, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--warmup",
    default=10,
    show_default=True,
    type=click.IntRange(min=0),
    help="Calls of each model before the clock is started.",
)
@click.option(
    "--seconds", type=float, help="End each batch size and number of threads after this time."
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    metavar="TARGET",
    help="An export to compare with, in the first engine; repeatable, ratios are over the first. "
    "fp32 without it, and on a GPU fp16 where it is exported.",
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    metavar="BENCH_JSON",
    help="Gate: an older bench.json whose speedups must be kept.",
)
@click.option(
    "--tolerance",
    default=0.1,
    show_default=True,
    type=float,
    help="With --compare: share of the older speedup that may be lost.",
)
@gates_option
@junit_option
@markdown_option
@json_option
@click.pass_context
def bench(
    context: click.Context,
    run: Path,
    engines: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    threads: tuple[int, ...],
    rounds: int,
    warmup: int,
    seconds: float | None,
    baselines: tuple[str, ...],
    compare: Path | None,
    tolerance: float,
    gates: Path | None,
    junit: Path | None,
    markdown: Path | None,
    as_json: bool,
) -> None:
    """Time the engines of RUN in turn with the FP32 ONNX of the same model.

    The result is written to bench.json in the run. Ratios above 1 mean faster than the baseline.
    Exit code 1 when --compare finds a regression.
    """
    from mimiq_deploy.benchmarking import benchmark_run
    from mimiq_deploy.gate_file import read_gate_file
    from mimiq_runtime.errors import InvalidInputError
    from mimiq_runtime.run_directory import RunDirectory

    check_partner(context, "--compare", "tolerance", "junit", present=compare is not None)
    read = [path for path in (gates, compare) if path is not None]
    reports = GateReports("bench", junit, markdown, read)
    reports.check_junit()
    limit = None if gates is None else read_gate_file(gates).bench.tolerance
    if limit is not None and compare is None:
        raise InvalidInputError(
            f"{gates} has a tolerance for --compare, and nothing is compared; give --compare, too."
        )
    if limit is not None and not was_typed(context, "tolerance"):
        tolerance = limit
    with reports.errors_are_told():
        report = benchmark_run(
            RunDirectory.open(run),
            engines,
            batch_sizes=batch_sizes,
            threads=threads,
            rounds=rounds,
            warmup=warmup,
            seconds=seconds,
            baselines=baselines,
            compare=compare,
            tolerance=tolerance,
        )
    reports.write(report)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _print(report)
    if report.comparison is not None and not report.comparison.passed:
        context.exit(REGRESSED)


def _print(report: BenchmarkReport) -> None:
    from rich.table import Table

    memory = {(row.session, row.batch_size, row.threads): row.peak_rss_mib for row in report.memory}
    table = Table(
        *("batch", "threads", "model", "p50 ms", "p90 ms", "p99 ms", "images/s"),
        *("times as fast", "95 % interval", "peak MiB"),
    )
    for row in report.rows:
        peak = memory.get((row.session, row.batch_size, row.threads))
        table.add_row(
            str(row.batch_size),
            str(row.threads),
            row.session,
            f"{row.p50_ms:.2f}",
            f"{row.p90_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.images_per_second:.1f}",
            f"{row.speedup.median:.2f}",
            f"{row.speedup.low:.2f} to {row.speedup.high:.2f}",
            "-" if peak is None else f"{peak:.0f}",
        )
    console = output_console()
    console.print(table)
    _print_device(report)
    if report.comparison is not None:
        _print_comparison(report.comparison)
    console.print(", ".join(f"{key} {value}" for key, value in report.machine.items()))


def _print_device(report: BenchmarkReport) -> None:
    """What the device itself measured, where it did."""
    console = output_console()
    for row in report.rows:
        if row.device is not None:
            console.print(
                f"batch {row.batch_size}, {row.session}, by events of the device: p50 "
                f"{row.device.compute_p50_ms:.3f} ms without copies, "
                f"{row.device.total_p50_ms:.3f} ms with them"
            )
    for load in report.gpu:
        console.print(
            f"batch {load.batch_size}, GPU: {load.power_w} W, {load.sm_clock_mhz} MHz "
            f"(lowest {load.sm_clock_min_mhz}), {load.temperature_c} C, {load.samples} samples"
        )


def _print_comparison(comparison: BenchmarkComparison) -> None:
    console = output_console()
    for change in comparison.changes:
        verdict = "REGRESSED" if change.regressed else "kept"
        console.print(
            f"batch {change.batch_size}, {change.threads} threads, {change.session}: "
            f"{change.old_speedup:.2f} times as fast before, {change.new_speedup:.2f} now "
            f"({100 * change.change:+.1f} %) {verdict}"
        )
    if not comparison.same_machine:
        console.print(f"{comparison.against} was measured on another machine.")
