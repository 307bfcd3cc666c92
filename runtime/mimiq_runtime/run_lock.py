"""One process at a time writes into a run directory; the next one is told who does, and since when.

The lock is that of the kernel (``flock``) on the file ``.lock`` in the directory: it ends with its
process, however that ends, so that no lock has to be removed by hand. What stands in the file only
tells others about its holder (docs/decisions/0031-one-writer.md).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from mimiq_runtime.errors import InvalidInputError, RunLockedError
from mimiq_runtime.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["LOCK_FILE", "LockHolder", "hold_directory", "lock_holder"]

LOCK_FILE = ".lock"
"""Its name in the directory."""

_LONGEST_RECORD = 4096
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

# Directories that this process holds, and how often: its parts may call one another.
_held: dict[Path, int] = {}


class LockHolder(Schema):
    """Who writes into a directory.

    Attributes:
        pid: Number of the process.
        host: The machine that it runs on.
        since: When it began, ISO 8601 in UTC.
        purpose: What it does, such as ``calibrate``.
    """

    pid: int = Field(ge=1)
    host: str = Field(max_length=255)
    since: str = Field(max_length=64)
    purpose: str = Field(max_length=255)

    def __str__(self) -> str:
        """For a message: ``process 17 on edge-3 (calibrate), since 2026-01-01T00:00:00+00:00``."""
        return f"process {self.pid} on {self.host} ({self.purpose}), since {self.since}"

    @property
    def has_ended(self) -> bool | None:
        """Whether the process is gone; None for one of another machine, of which nobody knows."""
        if self.host != socket.gethostname():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it lives, and is another user's
            return False
        return False


@contextlib.contextmanager
def hold_directory(directory: Path, purpose: str) -> Iterator[LockHolder | None]:
    """Be the only process that writes into a directory until the block ends.

    Within one process the block may be entered again. The processes that torchrun started are one
    job, in which the first one alone writes and holds the directory for all.

    Args:
        directory: A run directory, also one to be; it is created.
        purpose: What is done, for the message that another process gets.

    Yields:
        Who held the directory before and ended without letting go of it, as after a power cut;
        None where nobody did.

    Raises:
        RunLockedError: Another process holds it.
        InvalidInputError: The directory cannot be written to.
    """
    key = directory.resolve()
    if key in _held:
        _held[key] += 1
        try:
            yield None
        finally:
            _held[key] -= 1
        return
    path = directory / LOCK_FILE
    try:
        descriptor = _acquire(path)
    except OSError as error:
        raise InvalidInputError(
            f"Cannot write {path}: {error.strerror or error}; "
            "choose a folder that is writable and has room."
        ) from error
    _held[key] = 1
    try:
        stale = _read_record(path)
        _write_record(descriptor, path, purpose)
        yield stale
    finally:
        del _held[key]
        # Before it is let go of: nobody else can have put a file of this name there.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def lock_holder(directory: Path) -> LockHolder | None:
    """Who is said to hold a directory, whether or not that process still lives; None for nobody."""
    return _read_record(directory / LOCK_FILE)


def _acquire(path: Path) -> int:
    """Descriptor of the locked file.

    Raises:
        RunLockedError: Another process holds the lock.
        OSError: The file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        # A link in its place could lead to any file; that one must not be opened for writing.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            _lock(descriptor, path)
            if _is_still(path, found):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # The holder removed the file between our opening and locking it: take the new one.
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _refusal(path) from error
    except OSError as error:
        # Some network file systems have no locks. Then the record has to do: two processes that
        # start in the same moment are not told apart, all others are.
        if error.errno not in _NO_LOCKS_HERE:
            raise
        holder = _read_record(path)
        if holder is not None and not holder.has_ended:
            raise _refusal(path) from error


def _refusal(path: Path) -> RunLockedError:
    holder = _read_record(path)
    who = "another process" if holder is None else str(holder)
    remedy = "wait for it, or end it"
    if holder is not None and holder.has_ended is None:
        remedy += f"; if it has ended without a trace, remove {path}"
    return RunLockedError(f"{path.parent} is in use by {who}: {remedy}.")


def _is_still(path: Path, opened: os.stat_result) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


def _read_record(path: Path) -> LockHolder | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            return LockHolder.model_validate_json(file.read(_LONGEST_RECORD))
    # Empty while it is being written; anything else in it is not ours.
    except (OSError, ValidationError):
        return None


def _write_record(descriptor: int, path: Path, purpose: str) -> None:
    holder = LockHolder(
        pid=os.getpid(),
        host=socket.gethostname(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        purpose=purpose,
    )
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.model_dump_json().encode(), 0)
    except OSError as error:
        raise InvalidInputError(
            f"Cannot write {path}: {error.strerror or error}; "
            "choose a folder that is writable and has room."
        ) from error
