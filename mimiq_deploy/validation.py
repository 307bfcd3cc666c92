"""Validating engines: parity with other implementations, accuracy on labelled pictures, gates."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import numpy as np

from mimiq_deploy.comparison_data import ComparisonData, DataKind, DataRecord, open_data
from mimiq_deploy.implementations import (
    Reference,
    has_torch,
    is_engine,
    open_implementation,
    scope_of,
    title_of,
)
from mimiq_deploy.layer_comparison import (
    LAYER_THRESHOLD_DB,
    check_layers_can_be_compared,
    compare_layers,
)
from mimiq_deploy.picture_predictions import write_predictions
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.gates import NEEDS_LABELS, GateLimits, GateResult, Measures, evaluate_gates
from mimiq_runtime.layer_parity import LayerReport
from mimiq_runtime.machine import describe_machine
from mimiq_runtime.metrics import agreement, top1_accuracy, topk_accuracy
from mimiq_runtime.parity import LogitParity, compare_logits
from mimiq_runtime.preprocessing import model_input
from mimiq_runtime.progress import progress_bar
from mimiq_runtime.reference import read_reference
from mimiq_runtime.run_directory import writes_run
from mimiq_runtime.schema import Schema
from mimiq_runtime.scope import Scope
from mimiq_runtime.session import Session, SessionInfo, target_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["Accuracy", "EngineReport", "GateLimits", "ValidationReport", "validate_run"]

FULL_PRECISION = title_of(Reference.FP32, Scope.FULL)
FAKE_QUANTIZED = title_of(Reference.FAKE_QUANTIZED, Scope.FULL)
RECORDED = "recorded answers"
REPORT = "parity.json"

USUAL_REFERENCES = (Reference.FP32, Reference.FAKE_QUANTIZED, Reference.FAKE_QUANTIZED_FLOAT)
"""What an engine is compared with unless the user says otherwise."""

USUAL_GATE = Reference.FAKE_QUANTIZED
"""Which of them gates look at."""


class Accuracy(Schema):
    """Accuracy on labelled pictures.

    Attributes:
        top1: Share of pictures whose largest logit is the label's, 0 to 1.
        top5: Share of pictures whose label is among the five largest logits, 0 to 1.
    """

    top1: float
    top5: float


class EngineReport(Schema):
    """One engine, compared.

    Attributes:
        session: What ran.
        recorded: Parity with the quantized torch model as recorded at export, on some of the
            run's own calibration images; None for what is no engine and has no export.
        parity: Parity on the images with each reference that could run; a quantized torch model
            takes part in this engine's scope. Empty without images.
        accuracy: Accuracy on the pictures; None without labels.
        gates: The gates that were set.
        layers: Where the engine and its first reference part; None unless asked for.
    """

    session: SessionInfo
    recorded: LogitParity | None
    parity: dict[str, LogitParity]
    accuracy: Accuracy | None
    gates: list[GateResult]
    layers: LayerReport | None = None


class ValidationReport(Schema):
    """The content of ``parity.json``.

    Attributes:
        machine: Where it was measured.
        pictures: Where the photographs came from, and how many; None without.
        data: What was compared on beside the recorded answers; None for nothing.
        references: Accuracy of each reference on the pictures; empty without labels.
        reference_agreement: Share of the images with the same top-1 as full precision, for
            each reference, 0 to 1; empty where full precision takes no part.
        skipped: References that could not run here, and why. The quantized torch model takes part
            twice: with products in integers, as engines compute, which is what gates ask for;
            and with products in floating point, as it was trained.
        engines: One report an engine.
        passed: Whether every gate passed.
    """

    machine: dict[str, str]
    pictures: tuple[str, int] | None
    data: DataRecord | None = None
    references: dict[str, Accuracy]
    reference_agreement: dict[str, float]
    skipped: dict[str, str]
    engines: dict[str, EngineReport]
    passed: bool


@writes_run("validate")
def validate_run(
    run: RunDirectory,
    engines: Sequence[str],
    *,
    pictures: Path | DataKind | None,
    limits: GateLimits,
    engine_limits: Mapping[str, GateLimits] | None = None,
    against: Sequence[str] = (),
    per_layer: bool = False,
    layer_threshold_db: float = LAYER_THRESHOLD_DB,
    limit_pictures: int | None = None,
    batch_size: int = 16,
    threads: int | None = None,
) -> ValidationReport:
    """Compare implementations of a run's model, and measure their accuracy; write ``parity.json``.

    Usually that is engines with the quantized torch model. It takes part where torch is
    installed, and by its recorded answers everywhere.

    Args:
        run: A run that was exported for each engine.
        engines: What is examined; see
            :func:`~mimiq_deploy.implementations.known_implementations`.
        pictures: Folder of pictures, or which other images; None for the recorded images alone.
        limits: The gates.
        engine_limits: The gates of single engines, in place of ``limits``.
        against: What they are compared with, by the same names, on the run's own images where
            no others are given; gates look at the first one. None for
            :data:`USUAL_REFERENCES`, as far as they can run, and gates look at
            :data:`USUAL_GATE` or its recorded answers.
        per_layer: Whether to look for the tensor where each engine and the reference part.
        layer_threshold_db: With ``per_layer``: they part below this SQNR.
        limit_pictures: At most this many pictures.
        batch_size: Pictures run at once.
        threads: CPU threads of an engine.

    Raises:
        InvalidInputError: The run is not exported, the pictures cannot be used, a gate limits
            what is not measured, or the tensors of an engine cannot be compared.
        MissingDependencyError: What was asked for is not installed.
        EngineError: An engine cannot run here.
    """
    if against and pictures is None:
        pictures = DataKind.SYNTHETIC
    data = None if pictures is None else open_data(run, pictures, limit=limit_pictures)
    first = against[0] if against else None
    for engine in engines if per_layer else ():
        check_layers_can_be_compared(engine, first)
    asked = {engine: (engine_limits or {}).get(engine, limits) for engine in engines}
    _check_labels(asked, data)
    wanted, skipped = _references(run, engines, against, data, asked)
    with contextlib.ExitStack() as stack:
        sessions = {
            engine: stack.enter_context(open_implementation(run, engine, threads=threads))
            for engine in engines
        }
        recorded = {
            engine: _compare_with_recorded(run, engine, session) if is_engine(engine) else None
            for engine, session in sessions.items()
        }
        references = _open_references(run, stack, wanted, threads)
        logits = {} if data is None else _run_all({**references, **sessions}, run, data, batch_size)
        layers = {
            engine: compare_layers(
                run,
                engine,
                session,
                against=first,
                data=data,
                threshold_db=layer_threshold_db,
                batch_size=batch_size,
                threads=threads,
            )
            for engine, session in sessions.items()
            if per_layer
        }
    if data is not None:
        write_predictions(run, data, {**references, **sessions}, logits)
    accuracies = _accuracies(logits, data)
    reports = {}
    for engine, session in sessions.items():
        parity = {
            title: compare_logits(logits[title], logits[engine])
            for title in wanted[engine]
            if title in logits
        }
        reports[engine] = EngineReport(
            session=session.info,
            recorded=recorded[engine],
            parity=parity,
            accuracy=accuracies.get(engine),
            gates=_gates(
                asked[engine],
                _gated(run, engine, first, recorded[engine], parity),
                accuracies.get(engine),
                accuracies.get(FULL_PRECISION),
                broken=_gives_nan(recorded[engine], logits.get(engine)),
            ),
            layers=layers.get(engine),
        )
    report = ValidationReport(
        machine=describe_machine(),
        pictures=_photographs(data),
        data=None if data is None else data.record,
        references={name: accuracies[name] for name in references if name in accuracies},
        reference_agreement={
            name: agreement(logits[FULL_PRECISION], logits[name])
            for name in references
            if FULL_PRECISION in logits
        },
        skipped=skipped,
        engines=reports,
        passed=all(gate.passed for each in reports.values() for gate in each.gates),
    )
    run.write_json(REPORT, report.model_dump(mode="json"))
    return report


def _photographs(data: ComparisonData | None) -> tuple[str, int] | None:
    if data is None or data.record.kind is not DataKind.PHOTOGRAPHS:
        return None
    return data.record.origin, data.record.n


def _check_labels(asked: Mapping[str, GateLimits], data: ComparisonData | None) -> None:
    if data is not None and data.labels is not None:
        return
    names = {gate for limits in asked.values() for gate in limits.given if gate in NEEDS_LABELS}
    if names:
        images = "the recorded images have" if data is None else f"{data.record.kind} here have"
        raise InvalidInputError(
            f"{', '.join(sorted(names))} needs labels, and {images} none; give labelled pictures "
            "with --data, or gate on min_agreement, min_sqnr or max_kl."
        )


def _references(
    run: RunDirectory,
    engines: Sequence[str],
    against: Sequence[str],
    data: ComparisonData | None,
    asked: Mapping[str, GateLimits],
) -> tuple[dict[str, dict[str, tuple[str, Scope]]], dict[str, str]]:
    """For each engine the references by title, and which of the usual ones cannot run."""
    skipped: dict[str, str] = {}
    names: Sequence[str] = against or USUAL_REFERENCES
    if data is None:
        names = ()
    elif not against and not has_torch():
        skipped = {FAKE_QUANTIZED: "torch and timm are not installed"}
        names = (Reference.FP32,)
    wanted = {}
    for engine in engines:
        needed = list(names)
        if asked[engine].max_drop is not None and Reference.FP32 not in needed:
            needed.append(Reference.FP32)  # a drop is against full precision
        scope = scope_of(run, engine)
        wanted[engine] = {title_of(name, scope): (name, scope) for name in needed if name != engine}
    return wanted, skipped


def _open_references(
    run: RunDirectory,
    stack: contextlib.ExitStack,
    wanted: Mapping[str, Mapping[str, tuple[str, Scope]]],
    threads: int | None,
) -> dict[str, Session]:
    """By title, without those that are examined themselves."""
    return {
        title: stack.enter_context(open_implementation(run, name, scope=scope, threads=threads))
        for title, (name, scope) in _joined(wanted).items()
    }


def _joined(
    wanted: Mapping[str, Mapping[str, tuple[str, Scope]]],
) -> dict[str, tuple[str, Scope]]:
    return {title: what for own in wanted.values() for title, what in own.items()}


def _compare_with_recorded(run: RunDirectory, engine: str, session: Session) -> LogitParity:
    reference = read_reference(run, target_of(engine))
    images = model_input(reference.images, run.manifest.preprocessing, session.info.takes)
    return compare_logits(reference.fake_quantized, session.run(images))


def _run_all(
    sessions: dict[str, Session], run: RunDirectory, data: ComparisonData, batch_size: int
) -> dict[str, NDArray[np.float32]]:
    """Logits (N, classes) of every session; each picture is decoded once."""
    rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in sessions}
    preprocessing = run.manifest.preprocessing
    forms = {session.info.takes for session in sessions.values()}
    with progress_bar("validation", len(data)) as advance:
        for pixels in data.batches(batch_size):
            inputs = {form: model_input(pixels, preprocessing, form) for form in forms}
            for name, session in sessions.items():
                rows[name].append(session.run(inputs[session.info.takes]))
            advance(len(pixels), "")
    return {name: np.concatenate(batches) for name, batches in rows.items()}


def _accuracies(
    logits: Mapping[str, NDArray[np.float32]], data: ComparisonData | None
) -> dict[str, Accuracy]:
    if data is None or data.labels is None:
        return {}
    return {
        name: Accuracy(
            top1=top1_accuracy(rows, data.labels),
            top5=topk_accuracy(rows, data.labels, k=min(5, rows.shape[1])),
        )
        for name, rows in logits.items()
    }


def _gated(
    run: RunDirectory,
    engine: str,
    against: str | None,
    recorded: LogitParity | None,
    parity: Mapping[str, LogitParity],
) -> tuple[str | None, LogitParity | None]:
    """The comparison that gates look at, and with what.

    Without images or torch, the recorded answers stand in for the quantized torch model.
    """
    title = title_of(against or USUAL_GATE, scope_of(run, engine))
    if title in parity:
        return title, parity[title]
    return (None if recorded is None else RECORDED), recorded


def _gates(
    limits: GateLimits,
    gated: tuple[str | None, LogitParity | None],
    accuracy: Accuracy | None,
    full_precision: Accuracy | None,
    *,
    broken: bool,
) -> list[GateResult]:
    against, parity = gated
    measures = Measures(
        accuracy=None if accuracy is None else math.nan if broken else accuracy.top1,
        reference_accuracy=None if full_precision is None else full_precision.top1,
        agreement=None if parity is None else math.nan if broken else parity.agreement,
        sqnr_db=None if parity is None else _sqnr(parity),
        kl=None if parity is None else _number(parity.kl),
    )
    return list(evaluate_gates(measures, limits, against=against))


def _gives_nan(recorded: LogitParity | None, logits: NDArray[np.float32] | None) -> bool:
    """Whether an engine gave a logit that is no number: then no gate may pass.

    Such pictures count as wrong in agreement and accuracy, and few of them would be forgiven.
    """
    in_recorded = recorded is not None and recorded.max_abs_error is None
    return in_recorded or (logits is not None and bool(np.isnan(logits).any()))


def _sqnr(parity: LogitParity) -> float:
    return math.inf if parity.identical else _number(parity.sqnr_db)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
