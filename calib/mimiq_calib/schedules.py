"""How learning rates fall: pure functions of the step."""

from __future__ import annotations

import math

__all__ = ["cosine_factor", "warm_up_cosine_factor"]


def cosine_factor(step: int, total: int, floor: float) -> float:
    """Share of the first learning rate at a step: 1 at the start, ``floor`` at the end.

    Args:
        step: Number of the step, 0 to ``total``.
        total: Number of steps in all.
        floor: The share at the end, 0 to 1.
    """
    return floor + (1 - floor) * (1 + math.cos(math.pi * step / total)) / 2


def warm_up_cosine_factor(step: int, total: int, warm_up: int) -> float:
    """Share of the largest learning rate: a straight rise, then a cosine towards 0.

    Args:
        step: Number of the step, 0 to ``total - 1``.
        total: Number of steps in all.
        warm_up: Number of steps of the rise, 0 to ``total``; the last of them has the largest rate.
    """
    if step < warm_up:
        return (step + 1) / warm_up
    return cosine_factor(step - warm_up, total - warm_up, 0.0)
