"""What a run directory holds, as data; ``mimiq-deploy inspect`` prints it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from mimiq_deploy.coverage import CoverageGroup, summarise_coverage
from mimiq_runtime.estimate import ESTIMATE_PATH, CostEstimate, read_estimate
from mimiq_runtime.event_log import EVENTS, Event, read_events
from mimiq_runtime.manifest import ModelRecord, Preprocessing, StageRecord
from mimiq_runtime.quantization_table import QuantizationTable, TensorKind
from mimiq_runtime.run_lock import LOCK_FILE, LockHolder, lock_holder
from mimiq_runtime.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from mimiq_runtime.run_directory import RunDirectory

__all__ = [
    "ExportSummary",
    "FileSummary",
    "QuantizerGroup",
    "RunSummary",
    "Verification",
    "summarise_run",
    "summarise_table",
    "verify_run",
]


class QuantizerGroup(Schema):
    """All quantizers of one kind and one bit width.

    Attributes:
        kind: Weights or activations.
        bits: Bit width.
        quantizers: How many there are.
        with_zero_point: How many of them are stored with a zero point other than 0.
        smallest_scale: Smallest step of any of their grids, in units of the tensor.
        largest_scale: Largest step of any of their grids.
    """

    kind: TensorKind
    bits: int
    quantizers: int
    with_zero_point: int
    smallest_scale: float
    largest_scale: float


class FileSummary(Schema):
    """One file that ``run.json`` records, or that lies in the run without being recorded.

    Attributes:
        path: Relative to the run, with ``/``.
        bytes: Size on disk, or None when it is missing.
        recorded: Whether ``run.json`` has its digest.
    """

    path: str
    bytes: int | None
    recorded: bool


class ExportSummary(Schema):
    """One ONNX model of the run.

    Attributes:
        target: The kind of engine that it was written for.
        path: Relative to the run.
        bytes: Its size.
        finished: Whether the export was recorded, and not interrupted before.
    """

    target: str
    path: str
    bytes: int
    finished: bool


class Verification(Schema):
    """Whether the files still are what was recorded.

    Attributes:
        checked: Number of recorded files.
        missing: Recorded files that are gone.
        changed: Recorded files with another SHA-256, or behind a link that leaves the run.
        unrecorded: Files of which nothing is known.
    """

    checked: int
    missing: list[str]
    changed: list[str]
    unrecorded: list[str]

    @property
    def damaged(self) -> list[str]:
        """What is missing or changed."""
        return [*self.missing, *self.changed]


class RunSummary(Schema):
    """What a run holds.

    Attributes:
        run: The directory as it was given.
        created: Time of its start, ISO 8601 in UTC.
        bits: Bit widths, such as ``w4a4``.
        model: Which model was quantized.
        preprocessing: How a picture becomes its input.
        recipe: The recipe as it was resolved.
        seed: Seed of every random choice.
        environment: Versions of the libraries that took part.
        stages: State of each stage, by its name.
        quantizers: The quantization table in short; None while there is none.
        coverage: How many products of the model are quantized, and which are not; None while
            there is no quantization table, or it does not say.
        estimate: What quantization costs by held-out calibration images; None where none was made.
        exports: ONNX models found.
        files: Files recorded or found, by path.
        writer: Who writes into the run, or was interrupted at it; None for nobody.
        last_event: The last line of its events; None where there are none.
        verification: Result of :func:`verify_run` when it was asked for.
    """

    run: str
    created: str
    bits: str
    model: ModelRecord
    preprocessing: Preprocessing
    recipe: dict[str, Any]
    seed: int
    environment: dict[str, str]
    stages: dict[str, StageRecord]
    quantizers: list[QuantizerGroup] | None
    coverage: list[CoverageGroup] | None
    estimate: CostEstimate | None
    exports: list[ExportSummary]
    files: list[FileSummary]
    writer: LockHolder | None
    last_event: Event | None
    verification: Verification | None = None


def summarise_run(run: RunDirectory, verification: Verification | None = None) -> RunSummary:
    """Collect what a run holds; two JSON files are read beside the manifest.

    Args:
        run: The run.
        verification: Becomes part of the summary. A quantization table or an estimate that it
            found damaged is left out, instead of being read.

    Raises:
        RunDirectoryError: One of them is damaged, or the recipe names no bit widths.
    """
    manifest = run.manifest
    unreadable = verification.damaged if verification is not None else []
    has_table = run.TABLE in manifest.files and run.TABLE not in unreadable
    table = run.quantization_table() if has_table else None
    return RunSummary(
        run=str(run.root),
        created=manifest.created,
        bits=manifest.bits,
        model=manifest.model,
        preprocessing=manifest.preprocessing,
        recipe=manifest.recipe,
        seed=manifest.seed,
        environment=manifest.environment,
        stages=manifest.stages,
        quantizers=summarise_table(table) if table is not None else None,
        coverage=summarise_coverage(table) if table is not None else None,
        estimate=read_estimate(run) if ESTIMATE_PATH not in unreadable else None,
        exports=_exports(run),
        files=_files(run),
        writer=lock_holder(run.root),
        last_event=next(reversed(read_events(run.root)), None),
        verification=verification,
    )


def summarise_table(table: QuantizationTable) -> list[QuantizerGroup]:
    """Group the quantizers by kind and bit width, weights first, then by bits."""
    groups = defaultdict(list)
    for tensor in table.tensors:
        groups[tensor.kind, tensor.bits].append(tensor)
    summaries = []
    for (kind, bits), tensors in groups.items():
        scales = [
            scale
            for tensor in tensors
            for scale in (tensor.scale if isinstance(tensor.scale, list) else [tensor.scale])
        ]
        summaries.append(
            QuantizerGroup(
                kind=kind,
                bits=bits,
                quantizers=len(tensors),
                with_zero_point=sum(tensor.zero_point != 0 for tensor in tensors),
                smallest_scale=min(scales),
                largest_scale=max(scales),
            )
        )
    return sorted(summaries, key=lambda group: (group.kind is not TensorKind.WEIGHT, group.bits))


def verify_run(
    run: RunDirectory, on_file: Callable[[str], None] = lambda path: None
) -> Verification:
    """Compare every recorded file with its SHA-256.

    Args:
        run: The run.
        on_file: Called with the path of each file once it is checked.
    """
    missing, changed = [], []
    for relative in run.manifest.files:
        if not (run.root / relative).is_file():
            missing.append(relative)
        elif not run.is_intact(relative):
            changed.append(relative)
        on_file(relative)
    return Verification(
        checked=len(run.manifest.files),
        missing=missing,
        changed=changed,
        unrecorded=[file.path for file in _files(run) if not file.recorded],
    )


def _files(run: RunDirectory) -> list[FileSummary]:
    recorded = run.manifest.files
    on_disk = {
        path.relative_to(run.root).as_posix(): path.stat().st_size
        for path in run.root.rglob("*")
        if path.is_file()
    }
    on_disk.pop(run.MANIFEST, None)  # it holds the records
    on_disk.pop(LOCK_FILE, None)  # it says who is at work
    on_disk.pop(EVENTS, None)  # it grows with every event, and has no digest
    return [
        FileSummary(path=path, bytes=on_disk.get(path), recorded=path in recorded)
        for path in sorted(on_disk.keys() | recorded.keys())
    ]


def _exports(run: RunDirectory) -> list[ExportSummary]:
    exports = []
    for path in sorted(run.root.glob("export/*/model.onnx")):
        relative = path.relative_to(run.root).as_posix()
        exports.append(
            ExportSummary(
                target=path.parent.name,
                path=relative,
                bytes=path.stat().st_size,
                finished=relative in run.manifest.files,
            )
        )
    return exports
