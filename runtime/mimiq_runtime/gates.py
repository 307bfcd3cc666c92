"""Gates: the limits that an engine must keep to be released."""

from __future__ import annotations

import math
from enum import StrEnum

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.schema import Schema

__all__ = ["Gate", "GateResult", "evaluate_gates"]


class Gate(StrEnum):
    """What can be limited, by the name of its option.

    ``max_drop``: loss of top-1 accuracy against the reference, in percentage points.
    ``min_agreement``: share of images with the reference's top-1, 0 to 1.
    ``min_accuracy``: top-1 accuracy, 0 to 1.
    """

    MAX_DROP = "max_drop"
    MIN_AGREEMENT = "min_agreement"
    MIN_ACCURACY = "min_accuracy"


class GateResult(Schema):
    """One gate, evaluated.

    Attributes:
        name: Which gate.
        limit: What was asked, in the unit of the gate.
        measured: What came, in the unit of the gate; None when it was not a number.
        passed: Whether the limit was kept. What was not a number never passes.
    """

    name: Gate
    limit: float
    measured: float | None
    passed: bool


def evaluate_gates(
    *,
    accuracy: float | None = None,
    reference_accuracy: float | None = None,
    agreement: float | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    min_accuracy: float | None = None,
) -> tuple[GateResult, ...]:
    """Hold what was measured against the limits that were set.

    Args:
        accuracy: Top-1 accuracy of the engine, 0 to 1.
        reference_accuracy: Top-1 accuracy of the reference, 0 to 1.
        agreement: Share of images with the reference's top-1, 0 to 1.
        max_drop: Largest loss allowed, ``100 (reference_accuracy - accuracy)``, in percentage
            points; below zero it asks for a gain.
        min_agreement: Smallest agreement allowed, 0 to 1.
        min_accuracy: Smallest accuracy allowed, 0 to 1.

    Returns:
        One result for each limit that is not None. A value equal to its limit passes.

    Raises:
        InvalidInputError: A limit is out of its range, or what it limits was not measured.
    """
    drop = None
    if accuracy is not None and reference_accuracy is not None:
        drop = 100 * (reference_accuracy - accuracy)
    rows = (
        (Gate.MAX_DROP, max_drop, drop, (-100, 100)),
        (Gate.MIN_AGREEMENT, min_agreement, agreement, (0, 1)),
        (Gate.MIN_ACCURACY, min_accuracy, accuracy, (0, 1)),
    )
    return tuple(
        _evaluate(gate, limit, measured, allowed)
        for gate, limit, measured, allowed in rows
        if limit is not None
    )


def _evaluate(
    gate: Gate, limit: float, measured: float | None, allowed: tuple[float, float]
) -> GateResult:
    low, high = allowed
    if not low <= limit <= high:
        raise InvalidInputError(f"{gate} must lie within {low}..{high}; got {limit}.")
    if measured is None:
        raise InvalidInputError(
            f"{gate} has a limit of {limit}, and nothing was measured for it; give labelled "
            "pictures and a reference, or leave the limit out."
        )
    if not math.isfinite(measured):
        return GateResult(name=gate, limit=limit, measured=None, passed=False)
    # 100 (0.80 - 0.79) is 1.0000000000000009, and is meant to pass a limit of 1.
    measured = round(measured, 9)
    passed = measured <= limit if gate is Gate.MAX_DROP else measured >= limit
    return GateResult(name=gate, limit=limit, measured=measured, passed=passed)
