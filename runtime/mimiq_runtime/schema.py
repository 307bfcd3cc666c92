"""The base of everything that is read from or written to a file: strict, frozen pydantic models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Schema", "describe_faults"]


class Schema(BaseModel):
    """A file's content, or a part of it: refuses unknown keys and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def describe_faults(error: ValidationError) -> list[str]:
    """One sentence for each fault that pydantic found, in the order of the file.

    Args:
        error: What ``model_validate`` raised.

    Returns:
        Sentences such as ``synthesis.iterations: expected an integer ..., got 'many'``.
    """
    faults = []
    for fault in error.errors(include_url=False):
        where = ".".join(str(part) for part in fault["loc"]) or "(top level)"
        if fault["type"] == "extra_forbidden":
            faults.append(f"{where}: unknown key")
        elif fault["type"] == "missing":
            faults.append(f"{where}: missing")
        else:
            message = fault["msg"][:1].lower() + fault["msg"][1:]
            faults.append(f"{where}: {message}, got {fault['input']!r:.80}")
    return faults
