"""Where a command may write what its user names: over nothing that has to survive.

A run's files have their digests in ``run.json`` and are written by its own stages only; a device,
a pipe or a link would be replaced by a file, or written through. All of it is refused before any
work begins.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["check_output_file", "check_output_folder", "check_outside_of_runs"]

_MANIFEST = "run.json"


def check_output_file(
    path: Path, option: str, *, inputs: Iterable[Path] = (), or_folder: bool = False
) -> None:
    """Refuse a place for a file where something else would be lost.

    Args:
        path: Where the file shall be.
        option: The option that named it, for the message.
        inputs: Files that the command reads.
        or_folder: Whether a folder may be there, which is replaced as a whole.

    Raises:
        InvalidInputError: There is a directory, a link, a pipe or a device; the place is within a
            run directory; or it is that of an input.
    """
    mode = _mode_of(path, option)
    fits = mode is None or stat.S_ISREG(mode) or (or_folder and stat.S_ISDIR(mode))
    if mode is not None and not fits:
        raise InvalidInputError(
            f"{option} expects the name of a file, and {path} is {_kind(mode)}; choose a new name."
        )
    check_outside_of_runs(path, option)
    for given in inputs:
        if mode is not None and given.exists() and os.path.samefile(path, given):
            raise InvalidInputError(
                f"{option} would write over {given}, which is read here; choose another name."
            )


def check_output_folder(path: Path, option: str) -> None:
    """Refuse a place for a folder, new or old, where a file is or within a run.

    Raises:
        InvalidInputError: There is something else than a folder, or the place is within a run
            directory, or is one.
    """
    check_outside_of_runs(path, option)
    if path.exists() and not path.is_dir():
        raise InvalidInputError(f"{option}: {path} is a file; give a folder.")


def check_outside_of_runs(path: Path, option: str) -> None:
    """Refuse a file or a folder that lies within a run directory, or is one.

    Raises:
        InvalidInputError: It does, or the path cannot be followed.
    """
    try:
        place = path.parent.resolve() / path.name
        runs = [each for each in (place, *place.parents) if os.path.lexists(each / _MANIFEST)]
    except (OSError, RuntimeError, ValueError) as error:  # links that lead to one another
        raise _unusable(path, option, error) from error
    if runs:
        raise InvalidInputError(
            f"{option} {path} lies in the run {runs[0]}, where only the stages of the run write; "
            "choose a place outside of it."
        )


def _mode_of(path: Path, option: str) -> int | None:
    """Kind and permissions of what is there, of a link itself; None where there is nothing."""
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _unusable(path, option, error) from error


def _unusable(path: Path, option: str, error: Exception) -> InvalidInputError:
    reason = getattr(error, "strerror", None) or error
    return InvalidInputError(
        f"{option} {str(path)[:200]!r} cannot be written: {reason}; choose another name."
    )


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISLNK(mode):
        return "a link"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
