"""Gates: the limits that an engine must keep to be released."""

from __future__ import annotations

import math
from enum import StrEnum

from pydantic import Field

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.schema import Schema

__all__ = ["NEEDS_LABELS", "Gate", "GateLimits", "GateResult", "Measures", "evaluate_gates"]


class Gate(StrEnum):
    """What can be limited, by the name of its option.

    ``max_drop``: loss of top-1 accuracy against full precision, in percentage points.
    ``min_agreement``: share of images with the reference's top-1, 0 to 1.
    ``min_accuracy``: top-1 accuracy, 0 to 1.
    ``min_sqnr``: signal-to-quantization-noise ratio of the logits against the reference's, in dB.
    ``max_kl``: Kullback-Leibler divergence from the reference, in nats.
    """

    MAX_DROP = "max_drop"
    MIN_AGREEMENT = "min_agreement"
    MIN_ACCURACY = "min_accuracy"
    MIN_SQNR = "min_sqnr"
    MAX_KL = "max_kl"

    @property
    def is_upper(self) -> bool:
        """Whether the limit is a largest value; a smallest one otherwise."""
        return self in (Gate.MAX_DROP, Gate.MAX_KL)


NEEDS_LABELS = (Gate.MAX_DROP, Gate.MIN_ACCURACY)
"""The gates that only labelled pictures can decide."""


class GateLimits(Schema):
    """The limits that an engine must keep; None for no limit.

    Attributes:
        max_drop: Largest loss of top-1 accuracy against full precision,
            ``100 (reference - engine)``, in percentage points; below zero it asks for a gain.
        min_agreement: Smallest share of images with the same top-1 as the reference, 0 to 1.
        min_accuracy: Smallest top-1 accuracy, 0 to 1.
        min_sqnr: Smallest signal-to-quantization-noise ratio of the logits, in dB.
        max_kl: Largest Kullback-Leibler divergence from the reference, in nats.
    """

    max_drop: float | None = Field(default=None, ge=-100, le=100)
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    min_accuracy: float | None = Field(default=None, ge=0, le=1)
    min_sqnr: float | None = Field(default=None, allow_inf_nan=False)
    max_kl: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @property
    def given(self) -> dict[Gate, float]:
        """The limits that are set, in a fixed order."""
        limits = {gate: getattr(self, gate.value) for gate in Gate}
        return {gate: limit for gate, limit in limits.items() if limit is not None}

    def overridden_by(self, other: GateLimits) -> GateLimits:
        """These limits, but for those that the other one sets."""
        changed = {gate.value: limit for gate, limit in other.given.items()}
        return self.model_copy(update=changed)


class Measures(Schema):
    """What was measured of an engine; None for what was not.

    Attributes:
        accuracy: Top-1 accuracy, 0 to 1.
        reference_accuracy: Top-1 accuracy of full precision, 0 to 1.
        agreement: Share of images with the reference's top-1, 0 to 1.
        sqnr_db: Ratio of the logits against the reference's in dB; infinite where they are equal.
        kl: Divergence from the reference in nats.
    """

    accuracy: float | None = None
    reference_accuracy: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    kl: float | None = None

    def of(self, gate: Gate) -> float | None:
        """The value that a gate limits, in the unit of the gate."""
        if gate is Gate.MAX_DROP:
            if self.accuracy is None or self.reference_accuracy is None:
                return None
            return 100 * (self.reference_accuracy - self.accuracy)
        return {
            Gate.MIN_AGREEMENT: self.agreement,
            Gate.MIN_ACCURACY: self.accuracy,
            Gate.MIN_SQNR: self.sqnr_db,
            Gate.MAX_KL: self.kl,
        }[gate]


class GateResult(Schema):
    """One gate, evaluated.

    Attributes:
        name: Which gate.
        limit: What was asked, in the unit of the gate.
        measured: What came, in the unit of the gate; None when it has no finite value.
        passed: Whether the limit was kept. Without a finite value only the SQNR of equal logits
            passes, which is infinite.
        against: What the engine was compared with; None in a report of an earlier version.
    """

    name: Gate
    limit: float
    measured: float | None
    passed: bool
    against: str | None = None


def evaluate_gates(
    measures: Measures, limits: GateLimits, *, against: str | None = None
) -> tuple[GateResult, ...]:
    """Hold what was measured against the limits that were set.

    Args:
        measures: What was measured.
        limits: What was asked.
        against: Name of the reference, for the results.

    Returns:
        One result for each limit that is not None. A value equal to its limit passes.

    Raises:
        InvalidInputError: What is limited was not measured.
    """
    return tuple(
        _evaluate(gate, limit, measures.of(gate), against) for gate, limit in limits.given.items()
    )


def _evaluate(gate: Gate, limit: float, measured: float | None, against: str | None) -> GateResult:
    if measured is None:
        raise InvalidInputError(
            f"{gate} has a limit of {limit}, and nothing was measured for it; give "
            f"{'labelled pictures' if gate in NEEDS_LABELS else 'a reference'}, or leave the limit "
            "out."
        )
    if not math.isfinite(measured):
        equal = gate is Gate.MIN_SQNR and measured == math.inf
        return GateResult(name=gate, limit=limit, measured=None, passed=equal, against=against)
    # 100 (0.80 - 0.79) is 1.0000000000000009, and is meant to pass a limit of 1.
    measured = round(measured, 9)
    passed = measured <= limit if gate.is_upper else measured >= limit
    return GateResult(name=gate, limit=limit, measured=measured, passed=passed, against=against)
