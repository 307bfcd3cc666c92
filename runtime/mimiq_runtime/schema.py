"""The base of everything that is read from or written to a file: strict, frozen pydantic models."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mimiq_runtime.bounded_file import read_bytes
from mimiq_runtime.strict_json import parse_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Schema", "describe_faults", "parse_schema", "read_schema", "reason_of"]

S = TypeVar("S", bound=BaseModel)

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class Schema(BaseModel):
    """A file's content, or a part of it: refuses unknown keys and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def parse_schema(kind: type[S], content: bytes) -> S:
    """What a JSON document says, each value of its own type: no truth for 1, no text for a number.

    Raises:
        ValueError: As :func:`mimiq_runtime.strict_json.parse_json`; or, as pydantic's
            ``ValidationError``, the document is of another form. See :func:`reason_of`.
    """
    parse_json(content)
    return kind.model_validate_json(content, strict=True)


def read_schema(kind: type[S], path: Path) -> S:
    """What a JSON file says.

    Raises:
        OSError: It cannot be read.
        ValueError: As :func:`parse_schema`, or it is too large.
    """
    return parse_schema(kind, read_bytes(path))


def reason_of(error: Exception) -> str:
    """Why :func:`read_schema` could not read a file, in short; no more than three faults."""
    if isinstance(error, ValidationError):
        return "; ".join(describe_faults(error)[:3])
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


def describe_faults(error: ValidationError) -> list[str]:
    """One sentence for each fault that pydantic found, in the order of the file.

    Args:
        error: What ``model_validate`` raised.

    Returns:
        Sentences such as ``synthesis.iterations: expected an integer ..., got 'many'``.
    """
    faults = []
    for fault in error.errors(include_url=False):
        where = ".".join(str(part) for part in fault["loc"])[:120] or "(top level)"
        if fault["type"] == "extra_forbidden":
            faults.append(f"{where}: unknown key")
        elif fault["type"] == "missing":
            faults.append(f"{where}: missing")
        else:
            message = fault["msg"][:1].lower() + fault["msg"][1:]
            faults.append(f"{where}: {message}, got {_shown(fault['input']):.80}")
    return faults


def _shown(value: Any) -> str:
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of thousands of digits"
