"""Numbers as the report writes them."""

from __future__ import annotations

__all__ = ["bytes_as", "decibels", "percent", "scientific", "seconds_as"]


def percent(share: float, digits: int = 1) -> str:
    """A share of 0 to 1."""
    return f"{100 * share:.{digits}f} %"


def decibels(value: float | None, *, identical: bool = False) -> str:
    """A ratio in dB; None has no finite value, which is good news only where all is equal."""
    if value is None:
        return "identical" if identical else "not finite"
    return f"{value:.1f} dB"


def scientific(value: float | None, *, identical: bool = False) -> str:
    """Two digits and an exponent."""
    if value is None:
        return "identical" if identical else "not finite"
    return f"{value:.1e}"


def bytes_as(count: int) -> str:
    """Bytes in the unit that leaves few digits."""
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def seconds_as(seconds: float) -> str:
    """A duration."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
