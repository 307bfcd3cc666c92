"""Reading JSON that somebody else may have written: bounded, and with one meaning only.

Python's parser takes the last of two equal keys, knows NaN and infinity, and gives up on deep
nesting with an error of its own. A file that two readers would read differently is refused here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from mimiq_runtime.bounded_file import LARGEST_FILE, read_bytes

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LARGEST_DOCUMENT", "parse_json", "read_json"]

LARGEST_DOCUMENT = LARGEST_FILE
"""Bytes of the largest file that is read; the tables of the largest models have two million."""


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: It is no JSON, not UTF-8, has a key twice, has NaN or infinity, or is nested too
            deeply; the message says which.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: The file cannot be read, or is no regular file.
        ValueError: As :func:`parse_json`, or the file is larger than :data:`LARGEST_DOCUMENT`.
    """
    return parse_json(read_bytes(path, LARGEST_DOCUMENT))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {twice[:80]!r} more than once")
    return content


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is too large a number")
    return value
