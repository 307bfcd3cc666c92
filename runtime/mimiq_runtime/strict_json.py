"""Reading JSON that somebody else may have written: bounded, and with one meaning only.

Python's parser takes the last of two equal keys, knows NaN and infinity, and gives up on deep
nesting with an error of its own; it guesses among encodings, reads halves of characters that
cannot be written again, and integers that are too long to print. A file that two readers would
read differently is refused here.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NoReturn

from mimiq_runtime.bounded_file import LARGEST_FILE, read_bytes

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LARGEST_DOCUMENT", "parse_json", "read_json"]

LARGEST_DOCUMENT = LARGEST_FILE
"""Bytes of the largest file that is read; the tables of the largest models have two million."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: It is no JSON, not UTF-8, has a key twice, has NaN, infinity, an integer beyond
            64 bits or a lone surrogate, or is nested too deeply; the message says which.
    """
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from error
    try:
        value = json.loads(
            decoded,
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if _SURROGATE.search(decoded) is not None:
        _check_characters(value)
    return value


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


def _integer(text: str) -> int:
    # Signed or not; whoever reads it may have no others. Digits are counted before they are read.
    value = int(text) if len(text) <= 20 else 2**64
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _check_characters(value: Any) -> None:
    """Refuse texts that cannot be encoded; a pair of surrogates is one character by now."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("it has half of a character, a lone surrogate") from error


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is too large a number")
    return value
