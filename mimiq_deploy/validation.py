"""Validating engines: parity with the torch model, accuracy on labelled pictures, gates."""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mimiq_deploy.engine_models import engine_model
from mimiq_deploy.exporting import BASELINE, exported_scope
from mimiq_runtime.dataset import LabelledImages, iterate_batches, open_labelled_images
from mimiq_runtime.gates import GateResult, evaluate_gates
from mimiq_runtime.machine import describe_machine
from mimiq_runtime.metrics import agreement, top1_accuracy, topk_accuracy
from mimiq_runtime.parity import LogitParity, compare_logits
from mimiq_runtime.preprocessing import normalise
from mimiq_runtime.progress import progress_bar
from mimiq_runtime.reference import read_reference
from mimiq_runtime.schema import Schema
from mimiq_runtime.scope import Scope
from mimiq_runtime.session import Session, SessionInfo, open_session, target_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["Accuracy", "EngineReport", "GateLimits", "ValidationReport", "validate_run"]

FULL_PRECISION, FAKE_QUANTIZED = "full-precision", "fake-quantized"
FLOATING_POINT = "fake-quantized, floating-point products"
REPORT = "parity.json"


@dataclass(frozen=True)
class GateLimits:
    """The limits that an engine must keep; None for no limit.

    Attributes:
        max_drop: Largest loss of top-1 accuracy against full precision, in percentage points.
        min_agreement: Smallest share of images with the same top-1 as the quantized torch model.
        min_accuracy: Smallest top-1 accuracy, 0 to 1.
    """

    max_drop: float | None = None
    min_agreement: float | None = None
    min_accuracy: float | None = None


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
            run's own calibration images.
        parity: Parity on the pictures with full precision and with the quantized torch model in
            this engine's scope, as far as they could run; empty without pictures.
        accuracy: Accuracy on the pictures; None without pictures.
        gates: The gates that were set.
    """

    session: SessionInfo
    recorded: LogitParity
    parity: dict[str, LogitParity]
    accuracy: Accuracy | None
    gates: list[GateResult]


class ValidationReport(Schema):
    """The content of ``parity.json``.

    Attributes:
        machine: Where it was measured.
        pictures: Where the labelled pictures came from, and how many; None without.
        references: Accuracy of each reference on the pictures.
        reference_agreement: Share of the pictures with the same top-1 as full precision, for
            each reference, 0 to 1.
        skipped: References that could not run here, and why. The quantized torch model takes part
            twice: with products in integers, as engines compute, which is what gates ask for;
            and with products in floating point, as it was trained.
        engines: One report an engine.
        passed: Whether every gate passed.
    """

    machine: dict[str, str]
    pictures: tuple[str, int] | None
    references: dict[str, Accuracy]
    reference_agreement: dict[str, float]
    skipped: dict[str, str]
    engines: dict[str, EngineReport]
    passed: bool


def validate_run(
    run: RunDirectory,
    engines: Sequence[str],
    *,
    pictures: Path | None,
    limits: GateLimits,
    limit_pictures: int | None = None,
    batch_size: int = 16,
    threads: int | None = None,
) -> ValidationReport:
    """Compare engines with the torch model, and measure their accuracy; write ``parity.json``.

    The full-precision reference is the exported FP32 model in ONNX Runtime; the quantized torch
    model takes part where torch is installed, and by its recorded answers everywhere.

    Args:
        run: A run that was exported for each engine.
        engines: Names of the engines.
        pictures: Folder of labelled pictures, or None for the recorded images alone.
        limits: The gates.
        limit_pictures: At most this many pictures.
        batch_size: Pictures run at once.
        threads: CPU threads of an engine.

    Raises:
        InvalidInputError: The run is not exported, the pictures cannot be used, or a gate limits
            what is not measured.
    """
    labelled = None
    if pictures is not None:
        labelled = open_labelled_images(
            pictures, num_classes=run.manifest.model.num_classes, limit=limit_pictures
        )
    with contextlib.ExitStack() as stack:
        sessions = {
            engine: stack.enter_context(
                open_session(engine, engine_model(run, engine), threads=threads)
            )
            for engine in engines
        }
        recorded = {
            engine: _compare_with_recorded(run, engine, session)
            for engine, session in sessions.items()
        }
        references: dict[str, Session] = {}
        skipped: dict[str, str] = {}
        logits: dict[str, NDArray[np.float32]] = {}
        if labelled is not None:
            scopes = {exported_scope(run, target_of(engine)) for engine in engines}
            references, skipped = _open_references(run, stack, threads, scopes)
            logits = _run_all({**references, **sessions}, run, labelled, batch_size)
    accuracies = {
        name: Accuracy(
            top1=top1_accuracy(rows, labelled.labels),
            top5=topk_accuracy(rows, labelled.labels, k=min(5, rows.shape[1])),
        )
        for name, rows in logits.items()
        if labelled is not None
    }
    reports = {}
    for engine, session in sessions.items():
        own = _quantized_references(exported_scope(run, target_of(engine)))
        parity = {
            reference: compare_logits(logits[reference], logits[engine])
            for reference in references
            if reference in (FULL_PRECISION, *own)
        }
        reports[engine] = EngineReport(
            session=session.info,
            recorded=recorded[engine],
            parity=parity,
            accuracy=accuracies.get(engine),
            gates=_gates(limits, recorded[engine], parity.get(own[0]), accuracies, engine),
        )
    report = ValidationReport(
        machine=describe_machine(),
        pictures=None if labelled is None else (str(pictures), len(labelled)),
        references={name: accuracies[name] for name in references},
        reference_agreement={
            name: agreement(logits[FULL_PRECISION], logits[name]) for name in references
        },
        skipped=skipped,
        engines=reports,
        passed=all(gate.passed for each in reports.values() for gate in each.gates),
    )
    run.write_json(REPORT, report.model_dump(mode="json"))
    return report


def _compare_with_recorded(run: RunDirectory, engine: str, session: Session) -> LogitParity:
    reference = read_reference(run, target_of(engine))
    images = normalise(reference.images, run.manifest.preprocessing)
    return compare_logits(reference.fake_quantized, session.run(images))


def _open_references(
    run: RunDirectory, stack: contextlib.ExitStack, threads: int | None, scopes: set[Scope]
) -> tuple[dict[str, Session], dict[str, str]]:
    references = {
        FULL_PRECISION: stack.enter_context(
            open_session("ort-cpu", engine_model(run, "ort-cpu", target=BASELINE), threads=threads)
        )
    }
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("timm") is None:
        return references, {FAKE_QUANTIZED: "torch and timm are not installed"}
    from mimiq_calib.conversion.scope import limit_scope
    from mimiq_calib.engine_arithmetic.convert import in_engine_arithmetic
    from mimiq_calib.run_models import load_student
    from mimiq_calib.torch_session import TorchSession

    for scope in sorted(scopes):
        student = load_student(run)
        limit_scope(student, scope)
        models = (in_engine_arithmetic(student), student)
        for name, model in zip(_quantized_references(scope), models, strict=True):
            references[name] = stack.enter_context(
                TorchSession(
                    model,
                    name=name,
                    origin=(run.QUANTIZED, run.manifest.files[run.QUANTIZED].sha256),
                    input_shape=run.manifest.preprocessing.input_size,
                )
            )
    return references, {}


def _quantized_references(scope: Scope) -> tuple[str, str]:
    """Names of the two quantized torch models of a scope: with products in integers, and not."""
    suffix = "" if scope is Scope.FULL else f", {scope} scope"
    return FAKE_QUANTIZED + suffix, FLOATING_POINT + suffix


def _run_all(
    sessions: dict[str, Session], run: RunDirectory, labelled: LabelledImages, batch_size: int
) -> dict[str, NDArray[np.float32]]:
    """Logits (N, classes) of every session; each picture is decoded once."""
    rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in sessions}
    preprocessing = run.manifest.preprocessing
    with progress_bar("validation", len(labelled)) as advance:
        for images, _ in iterate_batches(labelled, preprocessing, batch_size=batch_size):
            for name, session in sessions.items():
                rows[name].append(session.run(images))
            advance(len(images), "")
    return {name: np.concatenate(batches) for name, batches in rows.items()}


def _gates(
    limits: GateLimits,
    recorded: LogitParity,
    quantized: LogitParity | None,
    accuracies: dict[str, Accuracy],
    engine: str,
) -> list[GateResult]:
    # Without pictures or torch, the recorded answers stand in for the quantized torch model.
    same_answer = (quantized or recorded).agreement
    accuracy = accuracies.get(engine)
    reference = accuracies.get(FULL_PRECISION)
    return list(
        evaluate_gates(
            accuracy=None if accuracy is None else accuracy.top1,
            reference_accuracy=None if reference is None else reference.top1,
            agreement=same_answer,
            max_drop=limits.max_drop,
            min_agreement=limits.min_agreement,
            min_accuracy=limits.min_accuracy,
        )
    )
