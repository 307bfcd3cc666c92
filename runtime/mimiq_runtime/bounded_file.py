"""Reading a file that somebody else may have put there: at once, and into bounded memory.

Opening a pipe waits for somebody to write into it, a device may have no end, and a file may claim
any size. None of them is read.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LARGEST_FILE", "read_bytes", "read_text"]

LARGEST_FILE = 64 * 2**20
"""Bytes of the largest file that is read as a whole; of pictures and weights others decide."""


def read_bytes(path: Path, largest: int = LARGEST_FILE) -> bytes:
    """The content of a regular file of at most ``largest`` bytes.

    Raises:
        OSError: It is not there, is no regular file, or cannot be read.
        ValueError: It is larger.
    """
    _check_regular(os.stat(path))
    # What was looked at may be another file by now.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        opened = os.fstat(descriptor)
        _check_regular(opened)
        content = b"" if opened.st_size > largest else file.read(largest + 1)
    if max(opened.st_size, len(content)) > largest:
        unit, name = (2**20, "MiB") if largest >= 2**20 else (1, "bytes")
        raise ValueError(f"it is larger than {largest // unit} {name}")
    return content


def read_text(path: Path, largest: int = LARGEST_FILE) -> str:
    """The same as UTF-8; raises as :func:`read_bytes`, and ValueError for anything else."""
    content = read_bytes(path, largest)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from error


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
