"""What a linter says about one node."""

from __future__ import annotations

from enum import StrEnum

from mimiq_runtime.schema import Schema

__all__ = ["Finding", "Severity"]


class Severity(StrEnum):
    """How bad it is.

    ``error``: the engine refuses the model, or computes something else than the file says.
    ``warning``: the engine runs it slower, or less exactly, than it could.
    """

    ERROR = "error"
    WARNING = "warning"


class Finding(Schema):
    """A rule of an engine that a model breaks.

    Attributes:
        rule: Name of the rule, as in docs/lint-rules.md.
        severity: How bad it is.
        node: Name of the node; its operator and output where it has none.
        problem: What is wrong with this node.
        remedy: What to do about it.
    """

    rule: str
    severity: Severity
    node: str
    problem: str
    remedy: str
