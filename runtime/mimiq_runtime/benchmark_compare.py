"""Today's benchmark against an older one, as a gate on speed.

What is compared are the speedups over the baseline, not milliseconds: clocks, heat and neighbours
move the baseline and the engine alike, and cancel in the ratio
(docs/decisions/0020-speed-gates-compare-ratios.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mimiq_runtime.benchmark import BenchmarkChange, BenchmarkComparison, BenchmarkReport
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.schema import describe_faults
from mimiq_runtime.strict_json import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_runtime.benchmark import BenchmarkRow
    from mimiq_runtime.memory_probe import PeakMemory

__all__ = ["compare_benchmarks", "read_benchmark"]

# What decides how fast products of bytes are.
_MACHINE = ("cpu", "cores", "int8_instructions")


def read_benchmark(path: Path) -> BenchmarkReport:
    """Read a ``bench.json``.

    Raises:
        InvalidInputError: It is not there, or is no benchmark.
    """
    try:
        report = BenchmarkReport.model_validate(read_json(path))
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read: {error.strerror}; give a bench.json of an earlier run."
        ) from error
    except ValidationError as error:
        raise InvalidInputError(
            f"{path} is no benchmark: {'; '.join(describe_faults(error)[:3])}; give a bench.json "
            "that mimiq-deploy bench wrote."
        ) from error
    except ValueError as error:
        raise InvalidInputError(
            f"{path} is no benchmark: {error}; give a bench.json that mimiq-deploy bench wrote."
        ) from error
    return _with_threads(report)


def compare_benchmarks(
    new: BenchmarkReport, old: BenchmarkReport, *, against: str, tolerance: float
) -> BenchmarkComparison:
    """Compare the speedups of all rows that both have.

    A row has regressed when its median speedup is below ``(1 - tolerance)`` of the old one.

    Args:
        new: What was measured now.
        old: What it is compared with.
        against: Where the old one came from.
        tolerance: Share of the old speedup that may be lost, from 0 to below 1.

    Raises:
        InvalidInputError: The tolerance is out of range, the baselines differ, or no row is in
            both.
    """
    if not 0 <= tolerance < 1:
        raise InvalidInputError(f"Expected a tolerance from 0 to below 1, got {tolerance}.")
    if new.baseline != old.baseline:
        raise InvalidInputError(
            f"The speedups of {against} are over {old.baseline!r}, these over {new.baseline!r}; "
            "measure both with the same --baseline and the same first --engine."
        )
    before = {(row.session, row.batch_size, row.threads): row.speedup.median for row in old.rows}
    changes = []
    for row in new.rows:
        key = (row.session, row.batch_size, row.threads)
        # The baseline's own speedup is 1 by definition.
        if row.session == new.baseline or key not in before:
            continue
        share = row.speedup.median / before[key]
        changes.append(
            BenchmarkChange(
                session=row.session,
                batch_size=row.batch_size,
                threads=row.threads,
                old_speedup=before[key],
                new_speedup=row.speedup.median,
                change=share - 1,
                regressed=share < 1 - tolerance,
            )
        )
    if not changes:
        raise InvalidInputError(
            f"{against} has no row of the same session, batch size and number of threads as this "
            "benchmark; measure the same engines with the same --batch-size and --threads."
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
