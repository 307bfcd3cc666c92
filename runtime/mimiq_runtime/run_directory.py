"""The directory that holds everything of one run (docs/run-directory.md).

Each stage reads the directory, writes its own part of it atomically and records the digest of
each file that it finished. ``run.json`` is written last, so that a file is either complete and
recorded, or of no account.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mimiq_runtime.atomic import atomic_path, sha256_of, write_json, write_text
from mimiq_runtime.errors import RunDirectoryError
from mimiq_runtime.manifest import (
    SCHEMA_VERSION,
    FileRecord,
    RunManifest,
    StageRecord,
    StageState,
)
from mimiq_runtime.quantization_table import QuantizationTable
from mimiq_runtime.schema import describe_faults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["RunDirectory"]


class RunDirectory:
    """A run on disk, opened by :meth:`create` or :meth:`open`.

    Attributes:
        root: The directory.
        manifest: What ``run.json`` said when it was last read or written.
    """

    MANIFEST = "run.json"
    MODEL = "model.safetensors"
    QUANTIZED = "quantized.safetensors"
    TABLE = "quantization.json"
    METRICS = "metrics.jsonl"

    def __init__(self, root: Path, manifest: RunManifest) -> None:
        self.root = root
        self.manifest = manifest

    @classmethod
    def create(cls, root: Path, manifest: RunManifest) -> RunDirectory:
        """Start a run in a directory that is new or empty.

        Raises:
            RunDirectoryError: The directory exists and is not empty.
            InvalidInputError: The directory cannot be written.
        """
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise RunDirectoryError(
                f"A new run needs a new or an empty directory, and {root} is neither; choose "
                "another one, or continue the run in it with --resume."
            )
        run = cls(root, manifest)
        run._write_manifest(manifest)
        return run

    @classmethod
    def open(cls, root: Path) -> RunDirectory:
        """Open an existing run.

        Raises:
            RunDirectoryError: There is no run, ``run.json`` is damaged, or a newer program
                wrote it.
        """
        path = root / cls.MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunDirectoryError(
                f"{root} is not a run directory: it has no {cls.MANIFEST}; "
                "mimiq-deploy calibrate makes one."
            ) from error
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"{path} cannot be read as JSON: {error}.") from error
        _check_version(path, content)
        try:
            manifest = RunManifest.model_validate(content)
        except ValidationError as error:
            faults = "; ".join(describe_faults(error))
            raise RunDirectoryError(f"{path} does not describe a run: {faults}.") from error
        return cls(root, manifest)

    def path(self, relative: str) -> Path:
        """Absolute or caller-relative path of a file of this run."""
        return self.root / relative

    def existing(self, relative: str, *, made_by: str) -> Path:
        """Path of a file that must be there and recorded.

        Args:
            relative: Path inside the run.
            made_by: The command that makes it, for the message.

        Raises:
            RunDirectoryError: The file was never finished, or has been removed since.
        """
        path = self.path(relative)
        if relative not in self.manifest.files or not path.is_file():
            raise RunDirectoryError(f"{self.root} has no finished {relative}: run {made_by} first.")
        return path

    def stage_is_done(self, stage: str) -> bool:
        """Whether a stage was finished."""
        record = self.manifest.stages.get(stage)
        return record is not None and record.state is StageState.DONE

    def begin_stage(self, stage: str) -> None:
        """Mark a stage as running; its time so far is kept, for a stage that is resumed."""
        before = self.manifest.stages.get(stage)
        seconds = before.seconds if before is not None else 0.0
        self._write_stage(stage, StageRecord(state=StageState.RUNNING, seconds=seconds))

    def finish_stage(
        self, stage: str, *, seconds: float, details: Mapping[str, Any] | None = None
    ) -> None:
        """Mark a stage as done.

        Args:
            stage: Its name.
            seconds: Wall-clock time of this execution, in seconds; added to what was recorded.
            details: What the stage has to tell; must be JSON.
        """
        before = self.manifest.stages.get(stage)
        total = seconds + (before.seconds if before is not None else 0.0)
        record = StageRecord(
            state=StageState.DONE, seconds=round(total, 3), details=dict(details or {})
        )
        self._write_stage(stage, record)

    def record_files(self, *relatives: str) -> None:
        """Record the digests of files that are complete on disk."""
        files = dict(self.manifest.files)
        for relative in relatives:
            path = self.path(relative)
            files[relative] = FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)
        self._write_manifest(self.manifest.model_copy(update={"files": files}))

    def damaged_files(self) -> list[str]:
        """Recorded files that are missing or whose content is not what was recorded."""
        return [
            relative
            for relative, record in self.manifest.files.items()
            if not self.path(relative).is_file() or sha256_of(self.path(relative)) != record.sha256
        ]

    def write_tensors(
        self,
        relative: str,
        tensors: Mapping[str, NDArray[np.generic]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write a safetensors file atomically and record it.

        Raises:
            RunDirectoryError: The file cannot be written.
        """
        import numpy as np
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        # save_file writes the memory as it lies: a transposed view would be scrambled unnoticed.
        contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
        path = self.path(relative)
        try:
            with atomic_path(path) as temporary:
                save_file(contiguous, temporary, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:
            raise RunDirectoryError(
                f"{path} cannot be written: {error}; choose a folder that is writable and has room."
            ) from error
        self.record_files(relative)

    def write_json(self, relative: str, value: Any) -> None:
        """Write a JSON file atomically and record it."""
        write_json(self.path(relative), value)
        self.record_files(relative)

    def write_metrics(self, stage: str, piece: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Put the metrics of one piece of a stage into ``metrics.jsonl``.

        A piece that is made again after an interruption replaces what was written of it.

        Args:
            stage: Name of the stage.
            piece: Number of the shard or epoch.
            records: One object a line; each must be JSON.
        """
        path = self.path(self.METRICS)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if not _is_of_piece(line, stage, piece)]
        added = [json.dumps({"stage": stage, "piece": piece, **record}) for record in records]
        write_text(path, "".join(f"{line}\n" for line in [*kept, *added]))
        self.record_files(self.METRICS)

    def read_metrics(self, stage: str) -> dict[int, list[dict[str, Any]]]:
        """What :meth:`write_metrics` was given for each piece of a stage, in the file's order."""
        path = self.path(self.METRICS)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        pieces: dict[int, list[dict[str, Any]]] = {}
        for line in lines:
            record = json.loads(line)
            if record.pop("stage") == stage:
                pieces.setdefault(record.pop("piece"), []).append(record)
        return pieces

    def read_tensors(self, relative: str, *, made_by: str) -> dict[str, NDArray[Any]]:
        """Read a safetensors file of the run.

        Raises:
            RunDirectoryError: The file is not there, or not safetensors.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self.existing(relative, made_by=made_by)
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise RunDirectoryError(f"{path} is damaged: {error}.") from error

    def quantization_table(self) -> QuantizationTable:
        """The rows of ``quantization.json``.

        Raises:
            RunDirectoryError: The file is not there or damaged.
        """
        path = self.existing(self.TABLE, made_by="mimiq-deploy calibrate")
        try:
            return QuantizationTable.model_validate_json(path.read_bytes())
        except ValidationError as error:
            faults = "; ".join(describe_faults(error)[:3])
            raise RunDirectoryError(f"{path} is damaged: {faults}.") from error

    def _write_stage(self, stage: str, record: StageRecord) -> None:
        stages = {**self.manifest.stages, stage: record}
        self._write_manifest(self.manifest.model_copy(update={"stages": stages}))

    def _write_manifest(self, manifest: RunManifest) -> None:
        write_json(self.path(self.MANIFEST), manifest.model_dump(mode="json"))
        self.manifest = manifest


def _is_of_piece(line: str, stage: str, piece: int) -> bool:
    record = json.loads(line)
    return bool(record["stage"] == stage and record["piece"] == piece)


def _check_version(path: Path, content: Any) -> None:
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise RunDirectoryError(f"{path} does not describe a run: it has no schema_version.")
    if version > SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{path} has schema version {version}, and this program reads up to "
            f"{SCHEMA_VERSION}: update mimiq-deploy."
        )
