"""The directory that holds everything of one run (docs/run-directory.md).

Each stage reads the directory, writes its own part of it atomically and records the digest of
each file that it finished. ``run.json`` is written last, so that a file is either complete and
recorded, or of no account. Before a recorded file gets another content, the digest of that is
written down beside the old one, so that an interruption between the two writes leaves no doubt.

What is read is compared with its digest first, and neither names nor links lead out of the
directory: a run may come from somebody else.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from pydantic import ValidationError

from mimiq_runtime.atomic import (
    atomic_path,
    is_left_over,
    remove_left_overs,
    sha256_of,
    write_json,
)
from mimiq_runtime.bounded_file import read_bytes, read_text
from mimiq_runtime.errors import DivergedError, InvalidInputError, RunDirectoryError
from mimiq_runtime.event_log import note_finished, note_started, record_events
from mimiq_runtime.manifest import (
    SCHEMA_VERSION,
    FileRecord,
    RunManifest,
    StageRecord,
    StageState,
)
from mimiq_runtime.quantization_table import QuantizationTable
from mimiq_runtime.run_lock import LOCK_FILE, LockHolder, hold_directory
from mimiq_runtime.schema import parse_schema, read_schema, reason_of
from mimiq_runtime.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["RunDirectory", "writes_run"]

P = ParamSpec("P")
R = TypeVar("R")


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
        cls.check_new(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(
                f"Cannot write {root}: {error.strerror or error}; "
                "choose a folder that is writable and has room."
            ) from error
        run = cls(root, manifest)
        run._write_manifest(manifest)
        return run

    @staticmethod
    def check_new(root: Path) -> None:
        """Raise :class:`RunDirectoryError` unless a run can be started in a directory."""
        if root.exists() and (not root.is_dir() or _holds_something(root)):
            raise RunDirectoryError(
                f"A new run needs a new or an empty directory, and {root} is neither; choose "
                "another one, or continue the run in it with --resume."
            )

    @classmethod
    def open(cls, root: Path) -> RunDirectory:
        """Open an existing run.

        Raises:
            RunDirectoryError: There is no run, ``run.json`` is damaged, or a newer program
                wrote it.
        """
        return cls(root, _read_manifest(root))

    @contextlib.contextmanager
    def writing(self, purpose: str) -> Iterator[LockHolder | None]:
        """Be the only process that writes into this run until the block ends.

        Every command that writes into a run does so inside of this block. The manifest is read
        again at its start: another process may have written since. What happens becomes events
        (:mod:`mimiq_runtime.event_log`).

        Args:
            purpose: What is done, such as ``export``; another process that comes is told.

        Yields:
            Who wrote before and was interrupted; None where nobody was.

        Raises:
            RunLockedError: Another process is writing.
            InvalidInputError: The directory cannot be written to.
        """
        with hold_directory(self.root, purpose) as stale:
            self.manifest = _read_manifest(self.root)
            self.settle()
            with record_events(self.root, purpose, stale):
                yield stale

    def settle(self) -> None:
        """Decide what an interruption between two writes has left open, and remove what it left.

        To be called by the one process that writes; :meth:`writing` does.
        """
        remove_left_overs(self.root)
        replaced = {
            relative: record
            for relative, record in self.manifest.replacing.items()
            if self.path(relative).is_file() and _record_of(self.path(relative)) == record
        }
        if self.manifest.replacing:
            files = {**self.manifest.files, **replaced}
            self._write_manifest(self.manifest.model_copy(update={"files": files, "replacing": {}}))

    def path(self, relative: str) -> Path:
        """Absolute or caller-relative path of a file of this run.

        Raises:
            RunDirectoryError: The directory has vanished, or a link leads out of it.
        """
        path = self.root / relative
        if not self.root.is_dir():
            raise RunDirectoryError(
                f"The run directory {self.root} is not there any more; put it back, or start anew."
            )
        try:
            target = path.resolve()
        except (OSError, RuntimeError) as error:  # links that lead to one another
            raise RunDirectoryError(f"{path} cannot be followed: {error}.") from error
        if not target.is_relative_to(self.root.resolve()):
            raise RunDirectoryError(
                f"{path} leads out of the run directory, to {target}; "
                "put the file itself into the run."
            )
        return path

    def existing(self, relative: str, *, made_by: str) -> Path:
        """Path of a file that must be there, recorded, and the same as when it was recorded.

        Args:
            relative: Path inside the run.
            made_by: The command that makes it, for the message.

        Raises:
            RunDirectoryError: The file was never finished, or has been removed or changed since.
        """
        path = self.path(relative)
        if relative not in self.manifest.files or not path.is_file():
            raise RunDirectoryError(f"{self.root} has no finished {relative}: run {made_by} first.")
        if not self.is_intact(relative):
            raise RunDirectoryError(
                f"{path} is damaged: its content is not what run.json has the SHA-256 of; get a "
                f"good copy of the run, or make it again with {made_by}."
            )
        return path

    def finished(self, relative: str, *, made_by: str) -> Path | None:
        """Path of a file as :meth:`existing` gives it; None where none was finished.

        Raises:
            RunDirectoryError: It was finished, and has been removed or changed since.
        """
        if relative not in self.manifest.files:
            return None
        return self.existing(relative, made_by=made_by)

    def is_intact(self, relative: str) -> bool:
        """Whether a recorded file is there with the content that was recorded."""
        records = (self.manifest.files.get(relative), self.manifest.replacing.get(relative))
        try:
            path = self.path(relative)
            # Reading a pipe would wait for ever.
            if not path.is_file():
                return False
            size = path.stat().st_size
            # A digest of gigabytes takes seconds; another size needs none.
            return any(
                record is not None and record.bytes == size and record.sha256 == sha256_of(path)
                for record in records
            )
        except (OSError, RunDirectoryError):
            return False

    def stage_is_done(self, stage: str) -> bool:
        """Whether a stage was finished."""
        record = self.manifest.stages.get(stage)
        return record is not None and record.state is StageState.DONE

    def begin_stage(self, stage: str) -> None:
        """Mark a stage as running; its time so far is kept, for a stage that is resumed."""
        before = self.manifest.stages.get(stage)
        seconds = before.seconds if before is not None else 0.0
        self._write_stage(stage, StageRecord(state=StageState.RUNNING, seconds=seconds))
        note_started(self.root, stage)

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
        note_finished(self.root, stage)

    def record_files(self, *relatives: str) -> None:
        """Record the digests of files that are complete on disk."""
        found = {relative: _record_of(self.path(relative)) for relative in relatives}
        self._write_manifest(
            self.manifest.model_copy(
                update={
                    "files": {**self.manifest.files, **found},
                    "replacing": _without(self.manifest.replacing, relatives),
                }
            )
        )

    def forget_files(self, *relatives: str) -> None:
        """Take files off the record, before they are removed."""
        if not any(relative in self.manifest.files for relative in relatives):
            return
        self._write_manifest(
            self.manifest.model_copy(
                update={
                    "files": _without(self.manifest.files, relatives),
                    "replacing": _without(self.manifest.replacing, relatives),
                }
            )
        )

    def announce(self, relative: str, temporary: Path) -> None:
        """Write down what is about to take the place of a recorded file; for ``atomic_path``.

        Args:
            relative: The file that is replaced; nothing is written where it is not recorded.
            temporary: The new content, complete.
        """
        if relative in self.manifest.files:
            replacing = {**self.manifest.replacing, relative: _record_of(temporary)}
            self._write_manifest(self.manifest.model_copy(update={"replacing": replacing}))

    @contextlib.contextmanager
    def replacing(self, relative: str) -> Iterator[Path]:
        """Give a temporary path; when the block ends well, it becomes a recorded file of the run.

        Raises:
            InvalidInputError: The file cannot be written.
        """
        with atomic_path(
            self.path(relative), lambda temporary: self.announce(relative, temporary)
        ) as temporary:
            yield temporary
        self.record_files(relative)

    def damaged_files(self) -> list[str]:
        """Recorded files that are missing or whose content is not what was recorded."""
        return [relative for relative in self.manifest.files if not self.is_intact(relative)]

    def write_tensors(
        self,
        relative: str,
        tensors: Mapping[str, NDArray[np.generic]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write a safetensors file atomically and record it.

        Raises:
            RunDirectoryError: The file cannot be written.
            DivergedError: A tensor holds NaN or infinity.
        """
        import numpy as np
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        # save_file writes the memory as it lies: a transposed view would be scrambled unnoticed.
        contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
        path = self.path(relative)
        for name, tensor in contiguous.items():
            if np.issubdtype(tensor.dtype, np.inexact) and not np.isfinite(tensor).all():
                raise DivergedError(
                    f"{name} would hold NaN or infinity in {path}, and is not written; check the "
                    "checkpoint, and lower the learning rates."
                )
        try:
            with self.replacing(relative) as temporary:
                save_file(contiguous, temporary, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:
            raise RunDirectoryError(
                f"Cannot write {path}: {error}; choose a folder that is writable and has room."
            ) from error

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Write a file atomically and record it."""
        with self.replacing(relative) as temporary:
            temporary.write_bytes(data)

    def write_json(self, relative: str, value: Any) -> None:
        """Write a JSON file atomically and record it.

        Raises:
            DivergedError: A number is NaN or infinite.
            InvalidInputError: The file cannot be written.
        """
        try:
            text = json.dumps(value, indent=2, allow_nan=False)
        except ValueError as error:
            raise DivergedError(
                f"{self.path(relative)} would hold NaN or infinity, and is not written; check the "
                "checkpoint, and lower the learning rates."
            ) from error
        self.write_bytes(relative, f"{text}\n".encode())

    def write_metrics(self, stage: str, piece: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Put the metrics of one piece of a stage into ``metrics.jsonl``.

        A piece that is made again after an interruption replaces what was written of it.

        Args:
            stage: Name of the stage.
            piece: Number of the shard or epoch.
            records: One object a line; each must be JSON.

        Raises:
            DivergedError: A number is NaN or infinite.
            RunDirectoryError: The file is damaged.
        """
        kept = [
            line
            for line, record in self._metric_lines()
            if (record["stage"], record["piece"]) != (stage, piece)
        ]
        try:
            added = [
                json.dumps({"stage": stage, "piece": piece, **record}, allow_nan=False)
                for record in records
            ]
        except ValueError as error:
            raise DivergedError(
                f"The {stage} gave losses that are not finite numbers; what was finished before is "
                "kept. Lower its learning rate, and calibrate into another directory."
            ) from error
        self.write_bytes(self.METRICS, "".join(f"{line}\n" for line in [*kept, *added]).encode())

    def read_metrics(self, stage: str) -> dict[int, list[dict[str, Any]]]:
        """What :meth:`write_metrics` was given for each piece of a stage, in the file's order.

        Raises:
            RunDirectoryError: The file is damaged.
        """
        pieces: dict[int, list[dict[str, Any]]] = {}
        for _, record in self._metric_lines():
            if record.pop("stage") == stage:
                pieces.setdefault(record.pop("piece"), []).append(record)
        return pieces

    def _metric_lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Lines of ``metrics.jsonl`` as they are, and as records."""
        path = self.path(self.METRICS)
        if not os.path.lexists(path):
            return
        try:
            if self.METRICS in self.manifest.files and not self.is_intact(self.METRICS):
                raise ValueError("its content is not what run.json has the SHA-256 of")
            for line in read_text(path).splitlines():
                record = parse_json(line)
                if not _is_metric(record):
                    raise ValueError(f"{line[:60]!r} has no stage and piece")
                yield line, record
        except (OSError, ValueError) as error:
            raise RunDirectoryError(
                f"{path} is damaged: {error}; remove it to go on without what it tells."
            ) from error

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
        # Types that numpy does not have are an AttributeError or a KeyError.
        except (
            SafetensorError,
            OSError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise RunDirectoryError(
                f"{path} is damaged: {error}; get a good copy of the run."
            ) from error

    def quantization_table(self) -> QuantizationTable:
        """The rows of ``quantization.json``.

        Raises:
            RunDirectoryError: The file is not there or damaged.
        """
        path = self.existing(self.TABLE, made_by="mimiq-deploy calibrate")
        try:
            return read_schema(QuantizationTable, path)
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"{path} is damaged: {reason_of(error)}.") from error

    def _write_stage(self, stage: str, record: StageRecord) -> None:
        stages = {**self.manifest.stages, stage: record}
        self._write_manifest(self.manifest.model_copy(update={"stages": stages}))

    def _write_manifest(self, manifest: RunManifest) -> None:
        content = manifest.model_dump(mode="json")
        # Programs of before know no such key, and need none while nothing is being replaced.
        if not manifest.replacing:
            del content["replacing"]
        write_json(self.path(self.MANIFEST), content)
        self.manifest = manifest


def writes_run(
    purpose: str,
) -> Callable[
    [Callable[Concatenate[RunDirectory, P], R]], Callable[Concatenate[RunDirectory, P], R]
]:
    """Decorate a function that writes into the run it is given first: one process at a time does.

    Args:
        purpose: As for :meth:`RunDirectory.writing`, which is around every call.
    """

    def decorate(
        function: Callable[Concatenate[RunDirectory, P], R],
    ) -> Callable[Concatenate[RunDirectory, P], R]:
        @functools.wraps(function)
        def alone(run: RunDirectory, *arguments: P.args, **others: P.kwargs) -> R:
            with run.writing(purpose):
                return function(run, *arguments, **others)

        return alone  # type: ignore[return-value]  # wraps gives its first parameter a name

    return decorate


def _holds_something(root: Path) -> bool:
    """Whether there is anything but what a process left that was killed right at its start."""
    return any(entry.name != LOCK_FILE and not is_left_over(entry.name) for entry in root.iterdir())


def _is_metric(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("stage"), str)
        and isinstance(record.get("piece"), int)
    )


def _record_of(path: Path) -> FileRecord:
    return FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)


def _without(records: Mapping[str, FileRecord], names: Sequence[str]) -> dict[str, FileRecord]:
    return {name: record for name, record in records.items() if name not in names}


def _read_manifest(root: Path) -> RunManifest:
    path = root / RunDirectory.MANIFEST
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            raise ValueError("it is a link that leads out of the run")
        content = read_bytes(path)
        _check_version(path, parse_json(content))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunDirectoryError(
            f"{root} is not a run directory: it has no {path.name}; "
            "mimiq-deploy calibrate makes one."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise RunDirectoryError(f"{path} cannot be read as JSON: {error}.") from error
    try:
        return parse_schema(RunManifest, content)
    except ValidationError as error:
        raise RunDirectoryError(f"{path} does not describe a run: {reason_of(error)}.") from error


def _check_version(path: Path, content: Any) -> None:
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise RunDirectoryError(f"{path} does not describe a run: it has no schema_version.")
    if version > SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{path} has schema version {version}, and this program reads up to "
            f"{SCHEMA_VERSION}: update mimiq-deploy."
        )
