"""A gate in a sentence, for reports that people read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimiq_runtime.gates import Gate

if TYPE_CHECKING:
    from mimiq_runtime.benchmark import BenchmarkChange
    from mimiq_runtime.gates import GateResult

__all__ = ["describe_change", "describe_gate"]

_UNITS = {Gate.MAX_DROP: " points", Gate.MIN_SQNR: " dB", Gate.MAX_KL: " nats"}


def describe_gate(gate: GateResult) -> str:
    """What was expected and what came."""
    unit = _UNITS.get(gate.name, "")
    bound = "at most" if gate.name.is_upper else "at least"
    if gate.measured is None:
        got = "equal logits" if gate.passed else "no finite value"
    else:
        got = f"{gate.measured:.6g}{unit}"
    against = "" if gate.against is None else f" against {gate.against}"
    return f"{gate.name}{against}: expected {bound} {gate.limit:g}{unit}, got {got}"


def describe_change(change: BenchmarkChange, tolerance: float) -> str:
    """How fast a session had to be, over the baseline, and how fast it was."""
    limit = (1 - tolerance) * change.old_speedup
    return (
        f"batch {change.batch_size}, {change.threads} threads: expected at least {limit:.3g} times "
        f"as fast as the baseline ({change.old_speedup:.3g} before), got {change.new_speedup:.3g} "
        f"({100 * change.change:+.1f} %)"
    )
