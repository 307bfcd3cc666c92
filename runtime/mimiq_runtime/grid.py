"""The integers a quantizer may emit, and the container that stores them.

Every grid is stored in signed 8-bit integers, so that every grid of 2 to 8 bits runs as exact
arithmetic on INT8 kernels; with zero point 0, but for skewed grids of 8 bits
(docs/architecture.md, "Deployable by construction"; docs/decisions/0008-skewed-grids.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from mimiq_runtime.errors import InvalidInputError

__all__ = ["CONTAINER_MAX", "CONTAINER_MIN", "WIDEST", "Grid"]

CONTAINER_MIN, CONTAINER_MAX = -128, 127
"""The ends of the signed 8-bit container."""

WIDEST = CONTAINER_MAX - CONTAINER_MIN
"""Largest distance between the ends of a grid."""


@dataclass(frozen=True)
class Grid:
    """The consecutive integers ``qmin..qmax`` that a quantizer may emit.

    At most 256 integers, zero among them. A skewed grid may leave the container; then
    :attr:`offset` moves it inside, as the zero point of an engine that has one.

    Attributes:
        qmin: The smallest code, -255 to 0.
        qmax: The largest code, 1 to 255.

    Raises:
        InvalidInputError: The range does not hold zero, or is wider than the container.
    """

    qmin: int
    qmax: int

    def __post_init__(self) -> None:
        if not (self.qmin <= 0 < self.qmax and self.qmax - self.qmin <= WIDEST):
            raise InvalidInputError(
                f"A grid holds 0 and spans at most {WIDEST + 1} codes; "
                f"got {self.qmin}..{self.qmax}."
            )

    @classmethod
    def signed(cls, bits: int) -> Grid:
        """The two's-complement grid ``-2^(bits-1) .. 2^(bits-1) - 1`` for 2 to 8 bits."""
        _check_bits(bits)
        return cls(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    @classmethod
    def unsigned(cls, bits: int) -> Grid:
        """The non-negative grid ``0 .. 2^bits - 1`` for 2 to 8 bits."""
        return cls.skewed(bits, 0)

    @classmethod
    def skewed(cls, bits: int, negative: int) -> Grid:
        """A grid of ``2^bits`` codes, of which ``negative`` are below zero."""
        _check_bits(bits)
        return cls(-negative, 2**bits - 1 - negative)

    @property
    def offset(self) -> int:
        """What is added to a code to store it; zero for a grid within the container."""
        if self.qmin < CONTAINER_MIN:
            return CONTAINER_MIN - self.qmin
        return min(0, CONTAINER_MAX - self.qmax)

    @property
    def stored(self) -> Grid:
        """The grid as the container holds it, moved by :attr:`offset`."""
        return Grid(self.qmin + self.offset, self.qmax + self.offset)

    @property
    def is_signed(self) -> bool:
        """Whether the grid has negative codes."""
        return self.qmin < 0


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise InvalidInputError(f"Bit widths go from 2 to 8; got {bits}.")
