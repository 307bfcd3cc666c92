"""Writing files so that a reader sees the old content or the new, never a half.

Temporary file in the same folder, flush, fsync, rename, fsync of the folder: after a crash or a
power cut the name holds one complete version (POSIX ``rename`` is atomic within a file system).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "atomic_group",
    "atomic_path",
    "is_left_over",
    "remove_left_overs",
    "sha256_of",
    "write_bytes",
    "write_json",
    "write_text",
]


@contextlib.contextmanager
def atomic_path(
    path: Path, before_replace: Callable[[Path], None] = lambda temporary: None
) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and move it there when the block ends well.

    Args:
        path: Where the finished file shall be. Its folder is created.
        before_replace: Called with the temporary path when it is complete and on the disk, before
            it takes the place of what is there.

    Yields:
        The temporary path to write to; it is removed when the block raises.

    Raises:
        InvalidInputError: The folder cannot be created or written to, or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        _flush_to_disk(temporary)
        before_replace(temporary)
        # mkstemp makes private files; a run directory is to be shared like any other file.
        temporary.chmod(0o666 & ~_current_umask())
        temporary.replace(path)
        _flush_to_disk(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_group(
    path: Path, before_replace: Callable[[Path], None] = lambda temporary: None
) -> Iterator[Path]:
    """Give a path in a temporary folder; what is written there moves beside ``path`` at the end.

    For a file that refers to others by their names. The others move first, so that whoever sees
    the new ``path`` finds them; until then nobody has seen any. An older file of the same name is
    replaced as a whole.

    Args:
        path: Where the finished main file shall be. Its folder is created.
        before_replace: As for :func:`atomic_path`, called with the main file.

    Yields:
        The path to write the main file to, in a folder of its own on the same disk; the folder is
        removed at the end, with all that is in it when the block raises.

    Raises:
        InvalidInputError: The folder cannot be created or written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        ) as name:
            main = Path(name) / path.name
            yield main
            others = sorted(file for file in main.parent.iterdir() if file != main)
            for file in (*others, main):
                _flush_to_disk(file)
                if file == main:
                    before_replace(main)
                file.replace(path.parent / file.name)
                _flush_to_disk(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically; raises as :func:`atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically; raises as :func:`atomic_path` does."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically; raises as :func:`atomic_path`.

    NaN and infinity have no JSON form and raise :class:`ValueError`.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def is_left_over(name: str) -> bool:
    """Whether a file of this name is what a killed process left of :func:`atomic_path`."""
    return re.fullmatch(r"\..+\.\w{8}\.tmp", name) is not None


def remove_left_overs(folder: Path) -> None:
    """Remove what killed processes left in a folder and below; no one may be writing there."""
    for path in list(folder.rglob(".*.tmp")):
        if not is_left_over(path.name) or path.is_symlink():
            continue
        with contextlib.suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cannot_write(path: Path, error: OSError) -> InvalidInputError:
    return InvalidInputError(
        f"Cannot write {path}: {error.strerror or error}; "
        "choose a folder that is writable and has room."
    )


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _current_umask() -> int:
    # There is no way to read it but to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
