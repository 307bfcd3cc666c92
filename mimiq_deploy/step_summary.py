"""A validation or a benchmark as Markdown: GitHub shows it as the summary of a step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mimiq_deploy.gate_sentences import describe_change, describe_gate
from mimiq_runtime.atomic import write_text
from mimiq_runtime.benchmark import BenchmarkReport
from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mimiq_deploy.validation import EngineReport, ValidationReport
    from mimiq_runtime.parity import LogitParity

__all__ = ["markdown_of", "markdown_of_benchmark", "write_step_summary"]

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def write_step_summary(report: ValidationReport | BenchmarkReport, path: Path) -> None:
    """Write :func:`markdown_of` or :func:`markdown_of_benchmark`.

    The file that GitHub keeps for a step is appended to: other commands write there, too. Any
    other file is replaced, atomically.

    Raises:
        InvalidInputError: The file cannot be written.
    """
    if isinstance(report, BenchmarkReport):
        text = markdown_of_benchmark(report)
    else:
        text = markdown_of(report)
    shared = os.environ.get(STEP_SUMMARY)
    if not shared or Path(shared).resolve() != path.resolve():
        write_text(path, text)
        return
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise InvalidInputError(
            f"Cannot append to {path}: {error.strerror}; choose a file that is writable."
        ) from error


def markdown_of(report: ValidationReport) -> str:
    """Verdict, gates, parity, accuracy, and where engines and references part."""
    lines = [f"## mimiq-deploy validate: {'passed' if report.passed else 'FAILED'}", ""]
    if report.data is not None:
        lines += [f"On {report.data.n} {report.data.kind} ({_text(report.data.origin)}).", ""]
    for title, header, rows in (
        ("Gates", ("engine", "gate", "verdict"), _gates(report)),
        ("Parity", _PARITY, _parity(report)),
        ("Accuracy", ("model", "top-1 %", "top-5 %"), _accuracy(report)),
    ):
        found = list(rows)
        if found:
            lines += [f"### {title}", "", *_table(header, found), ""]
    for name, engine in report.engines.items():
        lines += _layers(name, engine)
    return "\n".join(lines).rstrip() + "\n\n"


def markdown_of_benchmark(report: BenchmarkReport) -> str:
    """Verdict, comparison with the older benchmark, and the times."""
    comparison = report.comparison
    verdict = "measured"
    lines = []
    if comparison is not None:
        verdict = "kept" if comparison.passed else "REGRESSED"
        lines = [f"Compared with {_text(comparison.against)}.", ""]
        if not comparison.same_machine:
            lines += ["That was measured on another machine.", ""]
        rows = [
            (
                change.session,
                describe_change(change, comparison.tolerance),
                "**REGRESSED**" if change.regressed else "kept",
            )
            for change in comparison.changes
        ]
        lines += ["### Comparison", "", *_table(("model", "speed", "verdict"), rows), ""]
    lines += ["### Times", "", *_table(_TIMES, list(_times(report)))]
    return "\n".join([f"## mimiq-deploy bench: {verdict}", "", *lines]) + "\n\n"


_TIMES = ("batch", "threads", "model", "p50 ms", "p99 ms", "images/s", "times as fast", "95 %")


def _times(report: BenchmarkReport) -> Iterator[Sequence[str]]:
    for row in report.rows:
        yield (
            str(row.batch_size),
            str(row.threads),
            row.session,
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.images_per_second:.1f}",
            f"{row.speedup.median:.2f}",
            f"{row.speedup.low:.2f} to {row.speedup.high:.2f}",
        )


_PARITY = ("engine", "compared with", "images", "agreement %", "top-5 %", "SQNR dB", "KL nats")


def _gates(report: ValidationReport) -> Iterator[Sequence[str]]:
    for name, engine in report.engines.items():
        for gate in engine.gates:
            yield name, describe_gate(gate), "passed" if gate.passed else "**FAILED**"


def _parity(report: ValidationReport) -> Iterator[Sequence[str]]:
    for name, engine in report.engines.items():
        if engine.recorded is not None:
            yield name, "recorded answers", *_numbers(engine.recorded)
        for reference, parity in engine.parity.items():
            yield name, reference, *_numbers(parity)


def _numbers(parity: LogitParity) -> tuple[str, ...]:
    endless = "identical" if parity.identical else "not finite"
    return (
        str(parity.n),
        f"{100 * parity.agreement:.2f}",
        f"{100 * parity.top5_overlap:.2f}",
        endless if parity.sqnr_db is None else f"{parity.sqnr_db:.1f}",
        endless if parity.kl is None else f"{parity.kl:.2e}",
    )


def _accuracy(report: ValidationReport) -> Iterator[Sequence[str]]:
    engines = {name: engine.accuracy for name, engine in report.engines.items()}
    for name, accuracy in {**report.references, **engines}.items():
        if accuracy is not None:
            yield name, f"{100 * accuracy.top1:.2f}", f"{100 * accuracy.top5:.2f}"


def _layers(name: str, engine: EngineReport) -> list[str]:
    if engine.layers is None:
        return []
    return [f"### Layers of {_text(name)}", "", *map(_text, engine.layers.sentences()), ""]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *([_text(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _text(cell: str) -> str:
    """Names come from files and folders; none of them may end a cell or begin a tag."""
    plain = " ".join(cell.split())
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
