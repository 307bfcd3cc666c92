"""The speed of a run's engines, from ``bench.json``."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

from mimiq_runtime.benchmark_compare import read_benchmark
from mimiq_runtime.report.drawing import FAINT, SERIES, draw
from mimiq_runtime.report.section import DataTable, Figure, Note, Section, missing_section

if TYPE_CHECKING:
    from mimiq_runtime.benchmark import BenchmarkReport, BenchmarkRow
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["read_speed", "speed_section"]

BENCH = "bench.json"
NAME, TITLE = "speed", "Speed"

_WORDS = {"batch_size": "batch size", "threads": "CPU threads"}
_LINES = ("-", "--", ":", "-.")


def read_speed(run: RunDirectory) -> BenchmarkReport | None:
    """The last benchmark of a run; None where there was none.

    Raises:
        InvalidInputError: The file is missing or damaged.
    """
    if BENCH not in run.manifest.files:
        return None
    return read_benchmark(run.existing(BENCH, made_by="mimiq-deploy bench"))


def speed_section(run: RunDirectory, prefix: str) -> Section:
    """Latency and throughput beside the baseline.

    Args:
        run: The run.
        prefix: What the names of its figures begin with.
    """
    bench = read_speed(run)
    if bench is None:
        return missing_section(
            NAME, TITLE, "The speed was not measured.", f"mimiq-deploy bench {run.root}"
        )
    others = [row for row in bench.rows if row.session != bench.baseline]
    threads = {row.threads for row in bench.rows}
    figures = []
    if others:
        figures.append(
            Figure(
                draw(
                    f"{prefix}speedup",
                    f"Times as fast as {bench.baseline}, with 95 % intervals",
                    lambda axes: _paint_speedups(axes, others, several=len(threads) > 1),
                    size=(5.6, 1.6 + 0.38 * len(others)),
                ),
                f"Times as fast as {bench.baseline}, with 95 % intervals; right of the line is "
                "faster.",
            )
        )
    batches = {row.batch_size for row in bench.rows}
    for by, other, values in (
        ("batch_size", "threads", batches),
        ("threads", "batch_size", threads),
    ):
        if len(values) > 1:
            paint = functools.partial(_paint_throughput, rows=bench.rows, by=by, other=other)
            label = f"Images a second by {_WORDS[by]}"
            figures.append(Figure(draw(f"{prefix}throughput-{by}", label, paint), f"{label}."))
    memory = {(row.session, row.batch_size, row.threads): row.peak_rss_mib for row in bench.memory}
    rows = [
        (
            row.session,
            str(row.batch_size),
            _number(row.threads),
            f"{row.p50_ms:.2f}",
            f"{row.p90_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.images_per_second:.1f}",
            f"{row.speedup.median:.2f} ({row.speedup.low:.2f} to {row.speedup.high:.2f})",
            _number(memory.get((row.session, row.batch_size, row.threads))),
        )
        for row in bench.rows
    ]
    return Section(
        name=NAME,
        title=TITLE,
        intro="The engines took turns, call by call, on the same random images; ratios compare "
        "calls that stand side by side.",
        parts=(
            *figures,
            DataTable(
                (
                    *("session", "batch", "threads", "p50 ms", "p90 ms", "p99 ms", "images/s"),
                    *("times as fast", "peak MiB"),
                ),
                rows,
                "Latency of a call, throughput, and peak memory of a process of its own",
            ),
            *_device_tables(bench),
            *_comparison(bench),
            Note(
                f"Measured on {bench.machine.get('cpu', 'an unknown CPU')}, "
                f"{bench.machine.get('cores', '?')} cores, "
                f"{bench.machine.get('int8_instructions', 'unknown')} instructions"
                + (f", {bench.machine['gpu']}." if "gpu" in bench.machine else ".")
            ),
        ),
    )


def _device_tables(bench: BenchmarkReport) -> list[DataTable]:
    """What a GPU said of itself: times by its own events, power and clocks."""
    tables = []
    timed = [(row, row.device) for row in bench.rows if row.device is not None]
    if timed:
        head = ("session", "batch", "p50 ms", "p90 ms", "p99 ms", "p50 ms with copies")
        cells = [
            (
                row.session,
                str(row.batch_size),
                f"{device.compute_p50_ms:.3f}",
                f"{device.compute_p90_ms:.3f}",
                f"{device.compute_p99_ms:.3f}",
                f"{device.total_p50_ms:.3f}",
            )
            for row, device in timed
        ]
        tables.append(DataTable(head, cells, "Latency by events of the device"))
    if bench.gpu:
        head = ("batch", "power W", "clock MHz", "lowest MHz", "temperature C", "memory MiB")
        loads = [
            (
                str(load.batch_size),
                _number(load.power_w),
                _number(load.sm_clock_mhz),
                _number(load.sm_clock_min_mhz),
                _number(load.temperature_c),
                _number(load.memory_used_mib),
            )
            for load in bench.gpu
        ]
        tables.append(DataTable(head, loads, "The GPU while the sessions took turns"))
    return tables


def _comparison(bench: BenchmarkReport) -> list[DataTable | Note]:
    """The gate against an older benchmark, where there was one."""
    comparison = bench.comparison
    if comparison is None:
        return []
    cells = [
        (
            change.session,
            str(change.batch_size),
            _number(change.threads),
            f"{change.old_speedup:.2f}",
            f"{change.new_speedup:.2f}",
            f"{100 * change.change:+.1f}",
            "regressed" if change.regressed else "kept",
        )
        for change in comparison.changes
    ]
    head = ("session", "batch", "threads", "before", "now", "change %", "verdict")
    title = f"Times as fast, against {comparison.against}; {100 * comparison.tolerance:g} % may go"
    table = DataTable(head, cells, title)
    if comparison.same_machine:
        return [table]
    return [table, Note(f"{comparison.against} was measured on another machine.")]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _paint_speedups(axes: Any, rows: list[BenchmarkRow], *, several: bool) -> None:
    sessions = list(dict.fromkeys(row.session for row in rows))
    for place, row in enumerate(rows):
        colour = SERIES[sessions.index(row.session) % len(SERIES)]
        ratio = row.speedup
        axes.plot([ratio.low, ratio.high], [place, place], color=colour)
        axes.plot([ratio.median], [place], "o", color=colour, ms=7)
        axes.annotate(
            f"{ratio.median:.2f}",
            (ratio.median, place),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
        )
    axes.axvline(1, color=FAINT, lw=1, ls="--")
    names = [
        f"{row.session}\nbatch {row.batch_size}{f', threads {row.threads}' if several else ''}"
        for row in rows
    ]
    axes.set_yticks(range(len(rows)), names, fontsize=10)
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.set_xlabel("times as fast")


def _paint_throughput(axes: Any, rows: list[BenchmarkRow], *, by: str, other: str) -> None:
    """Throughput by one of batch size and threads; a line for each session and value of the other.

    Args:
        axes: Where to paint.
        rows: All rows.
        by: Attribute of a row that goes along the x axis.
        other: The attribute that tells lines of one session apart.
    """
    others = sorted({getattr(row, other) or 0 for row in rows})
    for number, session in enumerate(dict.fromkeys(row.session for row in rows)):
        for style, value in zip(itertools.cycle(_LINES), others, strict=False):
            own = [r for r in rows if r.session == session and (getattr(r, other) or 0) == value]
            axes.plot(
                [getattr(row, by) for row in own],
                [row.images_per_second for row in own],
                f"o{style}",
                color=SERIES[number % len(SERIES)],
                label=session if len(others) == 1 else f"{session}, {_WORDS[other]} {value}",
            )
    ticks = sorted({getattr(row, by) for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_WORDS[by])
    axes.set_ylabel("images/s")
    axes.legend()
