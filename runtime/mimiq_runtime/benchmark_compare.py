"""Today's benchmark against an older one, as a gate on speed.

What is compared are the speedups over the baseline, not milliseconds: clocks, heat and neighbours
move the baseline and the engine alike, and cancel in the ratio
(docs/decisions/0020-speed-gates-compare-ratios.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mimiq_runtime.benchmark import BenchmarkChange, BenchmarkComparison, BenchmarkReport
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.schema import read_schema, reason_of

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from mimiq_runtime.benchmark import BenchmarkRow
    from mimiq_runtime.memory_probe import PeakMemory

__all__ = ["check_comparable", "compare_benchmarks", "read_benchmark"]

# What decides how fast products of bytes are.
_MACHINE = ("cpu", "cores", "int8_instructions", "gpu")


def read_benchmark(path: Path) -> BenchmarkReport:
    """Read a ``bench.json``.

    Raises:
        InvalidInputError: It is not there, or is no benchmark.
    """
    try:
        report = read_schema(BenchmarkReport, path)
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read: {error.strerror}; give a bench.json of an earlier run."
        ) from error
    except ValueError as error:
        raise InvalidInputError(
            f"{path} is no benchmark: {reason_of(error)}; give a bench.json that mimiq-deploy "
            "bench wrote."
        ) from error
    return _with_threads(report)


def check_comparable(
    old: BenchmarkReport,
    *,
    against: str,
    tolerance: float,
    baseline: str,
    sessions: Collection[str],
    batch_sizes: Collection[int],
    threads: Collection[int | None],
) -> None:
    """Refuse a comparison that could not be a gate; needs no measurement, so it comes first.

    Args:
        old: What is compared with.
        against: Where it came from.
        tolerance: Share of the old speedup that may be lost, from 0 to below 1.
        baseline: Name of the session that the new speedups refer to.
        sessions: Names of the sessions that are measured.
        batch_sizes: Images in one call, those that are measured.
        threads: Numbers of CPU threads that are measured.

    Raises:
        InvalidInputError: The tolerance is out of range, the baselines differ, or a row of the
            older benchmark is not measured: a row that nobody looks at can get slower.
    """
    if not 0 <= tolerance < 1:
        raise InvalidInputError(f"Expected a tolerance from 0 to below 1, got {tolerance}.")
    if baseline != old.baseline:
        raise InvalidInputError(
            f"The speedups of {against} are over {old.baseline!r}, these over {baseline!r}; "
            "measure both with the same --baseline and the same first --engine."
        )
    rows = [row for row in old.rows if row.session != old.baseline]
    if not rows:
        raise InvalidInputError(
            f"{against} has no row beside its baseline; give a bench.json with an engine in it."
        )
    for row in rows:
        measured = row.session in sessions and row.batch_size in batch_sizes
        if not measured or row.threads not in threads:
            raise InvalidInputError(
                f"{against} has a row for {row.session} at batch size {row.batch_size} and "
                f"{row.threads} threads, which this benchmark does not measure; measure the same "
                "--engine, --batch-size and --threads, or record a new file to compare with."
            )


def compare_benchmarks(
    new: BenchmarkReport, old: BenchmarkReport, *, against: str, tolerance: float
) -> BenchmarkComparison:
    """Compare the speedups of all rows of the older benchmark.

    A row has regressed when its median speedup is below ``(1 - tolerance)`` of the old one. Rows
    that are new are left out.

    Args:
        new: What was measured now.
        old: What it is compared with.
        against: Where the old one came from.
        tolerance: Share of the old speedup that may be lost, from 0 to below 1.

    Raises:
        InvalidInputError: See :func:`check_comparable`.
    """
    check_comparable(
        old,
        against=against,
        tolerance=tolerance,
        baseline=new.baseline,
        sessions=list(new.sessions),
        batch_sizes={row.batch_size for row in new.rows},
        threads={row.threads for row in new.rows},
    )
    now = {(row.session, row.batch_size, row.threads): row.speedup.median for row in new.rows}
    changes = []
    for row in old.rows:
        # The baseline's own speedup is 1 by definition.
        if row.session == old.baseline:
            continue
        speedup = now[row.session, row.batch_size, row.threads]
        share = speedup / row.speedup.median
        changes.append(
            BenchmarkChange(
                session=row.session,
                batch_size=row.batch_size,
                threads=row.threads,
                old_speedup=row.speedup.median,
                new_speedup=speedup,
                change=share - 1,
                regressed=share < 1 - tolerance,
            )
        )
    return BenchmarkComparison(
        against=against,
        tolerance=tolerance,
        same_machine=all(new.machine.get(key) == old.machine.get(key) for key in _MACHINE),
        changes=changes,
        passed=not any(change.regressed for change in changes),
    )


def _with_threads(report: BenchmarkReport) -> BenchmarkReport:
    """Before several numbers of threads could be measured, the only one stood with the session."""
    given = {name: info.threads for name, info in report.sessions.items()}

    def filled(row: BenchmarkRow | PeakMemory) -> Any:
        return row.model_copy(update={"threads": row.threads or given.get(row.session)})

    return report.model_copy(
        update={
            "rows": [filled(row) for row in report.rows],
            "memory": [filled(row) for row in report.memory],
        }
    )
