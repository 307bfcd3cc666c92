"""What the commands did to a run, as it happened: ``events.jsonl``, one JSON object a line.

For programs that watch long work. The process that holds the run appends a line for each event and
hands it to the system at once, so that nothing is lost when it is killed but a line that was being
written. Such a torn line is passed over by readers, and cut off by the next writer
(docs/decisions/0036-events-are-appended.md).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
import warnings
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.peak_memory import (
    describe_peak,
    forget_cuda_peak,
    peak_cuda_mib,
    peak_rss_mib,
)
from mimiq_runtime.schema import Schema, parse_schema
from mimiq_runtime.strict_json import LARGEST_DOCUMENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mimiq_runtime.run_lock import LockHolder

__all__ = [
    "EVENTS",
    "Event",
    "EventKind",
    "note_finished",
    "note_progress",
    "note_skipped",
    "note_started",
    "read_events",
    "record_events",
]

EVENTS = "events.jsonl"
"""Its name in the directory."""

LONGEST_MESSAGE = 2000

_CHUNK = 64 * 1024


class EventKind(StrEnum):
    """What happened, to the stage that the event names, or else to the command.

    ``started``. ``skipped``: an earlier process has done it, or as many of its pieces as ``piece``
    says. ``progress``: a piece of a stage is done. ``finished``. ``warning``. ``failed``: it ended
    with an error. ``interrupted``: by Ctrl-C or SIGTERM. ``abandoned``: the process before
    this one ended without a word, as by SIGKILL or a power cut.
    """

    STARTED = "started"
    SKIPPED = "skipped"
    PROGRESS = "progress"
    FINISHED = "finished"
    WARNING = "warning"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    ABANDONED = "abandoned"


class Event(Schema):
    """One line of ``events.jsonl``; a key without a value is left out there.

    Attributes:
        time: When, ISO 8601 in UTC.
        pid: Number of the process that wrote the line.
        command: What it does, such as ``calibrate``.
        event: What happened.
        stage: Of the command, such as ``synthesis``; None for the command itself.
        piece: Number of the shard, block, epoch or step that is done, from 0; of what is skipped
            the last one.
        of: How many pieces the stage has.
        seconds: Time since the stage, or the command, was started in this process.
        seconds_left: Estimate of the time until the stage is finished, from the pieces so far;
            None where they are unlike.
        peak_rss_mib: Largest resident memory of the process so far, in MiB.
        peak_cuda_mib: Most memory of torch's tensors on a GPU since the last start of a stage.
        message: What was said; of a piece that is unlike the others, its name.
    """

    time: str
    pid: int = Field(ge=1)
    command: str
    event: EventKind
    stage: str | None = None
    piece: int | None = None
    of: int | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    peak_rss_mib: float | None = None
    peak_cuda_mib: float | None = None
    message: str | None = None

    @property
    def memory(self) -> str:
        """Its memory for people; empty where it has none."""
        known = self.peak_rss_mib is not None
        return describe_peak(self.peak_rss_mib or 0.0, self.peak_cuda_mib) if known else ""

    def __str__(self) -> str:
        """``2026-01-01T00:00:00+00:00 calibrate synthesis: progress, 3 of 8``."""
        who = self.command if self.stage is None else f"{self.command} {self.stage}"
        piece = "" if self.piece is None else f", {self.piece + 1} of {self.of}"
        message = "" if self.message is None else f": {self.message}"
        return f"{self.time} {who}: {self.event}{piece}{message}"


@contextlib.contextmanager
def record_events(
    directory: Path, command: str, before: LockHolder | None = None
) -> Iterator[None]:
    """Append what happens to the events of a run until the block ends; its end, too.

    Only the process that holds the run may (:func:`mimiq_runtime.run_lock.hold_directory`). Within
    one process the block may be entered again: all goes to the outermost one. Python's warnings
    become events, and are shown as without.

    Args:
        directory: The run.
        command: What is done.
        before: Who held the run before and ended without a word.

    Raises:
        InvalidInputError: The file cannot be written.
    """
    key = directory.resolve()
    if key in _logs:
        yield
        return
    log = _logs[key] = _Log(directory, command)
    try:
        log.open()
        if before is not None:
            log.add(EventKind.ABANDONED, message=str(before))
        log.start(None)
        with _warnings_into(log):
            yield
        log.finish(None)
    except BaseException as error:
        # What went wrong is more than that it could not be written down.
        with contextlib.suppress(InvalidInputError):
            log.fail(error)
        raise
    finally:
        del _logs[key]
        log.close()


def note_started(directory: Path, stage: str) -> None:
    """A stage of the command begins; nothing where nobody records the events of this run."""
    log = _logs.get(directory.resolve())
    if log is not None:
        log.start(stage)


def note_progress(
    directory: Path, stage: str, piece: int, of: int, *, name: str | None = None
) -> None:
    """A piece of a stage is done; nothing where nobody records the events of this run.

    Args:
        directory: The run.
        stage: Which stage.
        piece: Number of what is done, from 0.
        of: How many there are.
        name: Of a piece that is unlike the others; the time that is left is not known then.
    """
    log = _logs.get(directory.resolve())
    if log is not None:
        log.progress(stage, piece, of, name)


def note_skipped(directory: Path, stage: str, pieces: int | None = None, of: int = 0) -> None:
    """An earlier process has done a stage; nothing where nobody records the events of this run.

    Args:
        directory: The run.
        stage: Which stage.
        pieces: How many of its pieces are done; None for the whole stage.
        of: How many it has.
    """
    log = _logs.get(directory.resolve())
    if log is not None and pieces != 0:
        part: dict[str, Any] = {} if pieces is None else {"piece": pieces - 1, "of": of}
        log.add(EventKind.SKIPPED, stage=stage, **part)


def note_finished(directory: Path, stage: str) -> None:
    """A stage is done; nothing where nobody records the events of this run."""
    log = _logs.get(directory.resolve())
    if log is not None:
        log.finish(stage)


def read_events(directory: Path) -> list[Event]:
    """The events of a run, the oldest first; lines that are none are passed over.

    Args:
        directory: The run. Where the file is missing, or cannot be read, there are no events; of
            a huge one the end is read.
    """
    try:
        descriptor = _open_regular(directory / EVENTS, os.O_RDONLY)
    except OSError:
        return []
    with open(descriptor, "rb") as file:
        file.seek(max(0, os.fstat(descriptor).st_size - LARGEST_DOCUMENT))
        lines = file.read(LARGEST_DOCUMENT).split(b"\n")
    # Behind the last end of a line there is nothing, or a line that was being written.
    return [event for line in lines[:-1] if (event := _parse(line)) is not None]


# The runs whose events this process records: its parts may call one another.
_logs: dict[Path, _Log] = {}


class _Log:
    """The open file of one run, and what was started."""

    def __init__(self, directory: Path, command: str) -> None:
        self._path = directory / EVENTS
        self._command = command
        self._descriptor: int | None = None
        self._begun: dict[str | None, float] = {}
        self._pieces: dict[str, int] = {}

    def open(self) -> None:
        """Open the file to append, without what an interruption has left of a line."""
        try:
            self._descriptor = _open_regular(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            _cut_torn_line(self._descriptor)
        except OSError as error:
            raise self._cannot_write(error) from error

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def start(self, stage: str | None) -> None:
        self._begun[stage] = time.monotonic()
        forget_cuda_peak()
        self.add(EventKind.STARTED, stage=stage)

    def progress(self, stage: str, piece: int, of: int, name: str | None) -> None:
        seconds, left = self.seconds(stage), None
        if seconds is not None and name is None:
            # Those that an earlier process has done took no time here.
            done = self._pieces[stage] = self._pieces.get(stage, 0) + 1
            left = round(seconds / done * (of - piece - 1), 1)
        self.add(
            EventKind.PROGRESS,
            stage=stage,
            piece=piece,
            of=of,
            seconds=seconds,
            seconds_left=left,
            message=name,
        )

    def finish(self, stage: str | None) -> None:
        seconds = self.seconds(stage)
        self._begun.pop(stage, None)
        self.add(EventKind.FINISHED, stage=stage, seconds=seconds, **_memory())

    def fail(self, error: BaseException) -> None:
        """The command ends badly; the stage is the one that was begun last and not finished."""
        stage = next(reversed(self._begun), None)
        meant = isinstance(error, Exception)
        kind = EventKind.FAILED if meant else EventKind.INTERRUPTED
        what = f"{type(error).__name__}: {error}" if meant else type(error).__name__
        message = " ".join(what.split())
        self.add(kind, stage=stage, seconds=self.seconds(stage), message=message, **_memory())

    def seconds(self, stage: str | None) -> float | None:
        """Since a stage was started here; None where it was not."""
        begun = self._begun.get(stage)
        return None if begun is None else round(time.monotonic() - begun, 3)

    def add(self, kind: EventKind, *, message: str | None = None, **others: Any) -> None:
        """Append a line; a file that is not open any more, or not yet, gets none."""
        event = Event(
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            pid=os.getpid(),
            command=self._command,
            event=kind,
            message=None if message is None else message[:LONGEST_MESSAGE],
            **others,
        )
        content = event.model_dump(mode="json", exclude_none=True)
        if self._descriptor is not None:
            try:
                _append(self._descriptor, f"{json.dumps(content)}\n".encode())
            except OSError as error:
                raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> InvalidInputError:
        return InvalidInputError(
            f"Cannot write {self._path}: {error.strerror or error}; "
            "choose a folder that is writable and has room."
        )


@contextlib.contextmanager
def _warnings_into(log: _Log) -> Iterator[None]:
    shown = warnings.showwarning

    def show(message: Any, category: Any, *others: Any, **named: Any) -> None:
        text = " ".join(f"{category.__name__}: {message}".split())
        # A warning is no reason to stop; a disk that is full will be told by what is written next.
        with contextlib.suppress(InvalidInputError):
            log.add(EventKind.WARNING, message=text)
        shown(message, category, *others, **named)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def _memory() -> dict[str, Any]:
    cuda = peak_cuda_mib()
    return {
        "peak_rss_mib": round(peak_rss_mib(), 1),
        "peak_cuda_mib": None if cuda is None else round(cuda, 1),
    }


def _open_regular(path: Path, flags: int) -> int:
    """Descriptor of a plain file: a link could lead out of the run, a pipe would make us wait."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return descriptor


def _append(descriptor: int, line: bytes) -> None:
    """Write a whole line, or none of it."""
    size = os.fstat(descriptor).st_size
    try:
        while line:
            line = line[os.write(descriptor, line) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _cut_torn_line(descriptor: int) -> None:
    """Cut off what stands behind the last end of a line."""
    size = end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - _CHUNK)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)


def _parse(line: bytes) -> Event | None:
    try:
        return parse_schema(Event, line)
    except ValueError:
        return None
