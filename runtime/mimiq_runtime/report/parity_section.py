"""Whether the engines answer as the torch model does, and how right they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimiq_runtime.report.numbers import decibels, percent, scientific
from mimiq_runtime.report.section import DataTable, Note, Section, Verdict, missing_section
from mimiq_runtime.report.shown_parity import FULL_PRECISION_REFERENCE, ShownParity, read_parity

if TYPE_CHECKING:
    from mimiq_runtime.parity import LogitParity
    from mimiq_runtime.report.section import Cell
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["parity_section"]

NAME, TITLE = "parity", "Parity and accuracy"


def parity_section(run: RunDirectory) -> Section:
    """The last validation: accuracy, parity with each reference, gates."""
    parity = read_parity(run)
    if parity is None:
        return missing_section(
            NAME,
            TITLE,
            "No engine was validated.",
            f"mimiq-deploy validate {run.root} --data FOLDER",
        )
    tables = [
        DataTable(
            ("model", "top-1", "top-5", "against full precision"),
            _accuracies(parity),
            "Accuracy on the pictures",
        ),
        DataTable(
            (
                *("engine", "compared with", "on"),
                *("same top-1", "top-5 in common", "SQNR", "KL in nats", "largest error"),
            ),
            _parities(parity),
            "Parity of the logits",
            words=3,
        ),
        DataTable(("engine", "gate", "measured", "limit", "verdict"), _gates(parity), "Gates"),
    ]
    notes = [
        Note(f"Not compared with {name}: {reason}.") for name, reason in parity.skipped.items()
    ]
    if parity.pictures is None:
        notes.append(
            Note(
                f"Without pictures: accuracy needs mimiq-deploy validate {run.root} --data FOLDER.",
            )
        )
    notes += [
        Note(
            f"{name} ran {engine.session.provider} of "
            + ", ".join(f"{lib} {version}" for lib, version in engine.session.libraries.items())
            + f" on {parity.machine.get('cpu', 'an unknown CPU')}."
        )
        for name, engine in parity.engines.items()
    ]
    return Section(
        name=NAME,
        title=TITLE,
        intro=_intro(parity),
        parts=(*(table for table in tables if table.rows), *notes),
    )


def _intro(parity: ShownParity) -> str:
    if parity.pictures is None:
        return "Engines compared with the recorded answers of the torch model."
    folder, count = parity.pictures
    labelled = bool(parity.references) or any(each.accuracy for each in parity.engines.values())
    known = "labelled pictures" if labelled else "pictures without labels"
    return f"Measured on {count} {known} of {folder}, which calibration has not seen."


def _accuracies(parity: ShownParity) -> list[tuple[Cell, ...]]:
    measured = dict(parity.references)
    for name, engine in parity.engines.items():
        if engine.accuracy is not None:
            measured[name] = engine.accuracy
    exact = parity.references.get(FULL_PRECISION_REFERENCE)
    return [
        (
            name,
            percent(row.top1, 2),
            percent(row.top5, 2),
            "-" if exact is None else f"{100 * (row.top1 - exact.top1):+.2f} points",
        )
        for name, row in measured.items()
    ]


def _parities(parity: ShownParity) -> list[tuple[Cell, ...]]:
    rows = []
    for name, engine in parity.engines.items():
        if engine.recorded is not None:
            rows.append(
                _parity(name, "recorded answers", f"{engine.recorded.n} images", engine.recorded)
            )
        rows += [
            _parity(name, reference, f"{each.n} pictures", each)
            for reference, each in engine.parity.items()
        ]
    return rows


def _parity(engine: str, reference: str, images: str, row: LogitParity) -> tuple[Cell, ...]:
    return (
        engine,
        reference,
        images,
        percent(row.agreement, 2),
        percent(row.top5_overlap),
        decibels(row.sqnr_db, identical=row.identical),
        scientific(row.kl, identical=row.identical),
        scientific(row.max_abs_error, identical=row.identical),
    )


def _gates(parity: ShownParity) -> list[tuple[Cell, ...]]:
    return [
        (
            name,
            str(gate.name),
            "not a number" if gate.measured is None else f"{gate.measured:.4g}",
            f"{gate.limit:g}",
            Verdict("passed" if gate.passed else "failed", gate.passed),
        )
        for name, engine in parity.engines.items()
        for gate in engine.gates
    ]
