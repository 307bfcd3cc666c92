"""The integers a quantizer may emit, and the container that stores them.

Every grid is a sub-range of signed 8-bit integers with zero point 0, so that every grid of 2 to 8
bits runs as exact arithmetic on INT8 kernels (docs/architecture.md, "Deployable by construction").
"""

from __future__ import annotations

from dataclasses import dataclass

from mimiq_runtime.errors import InvalidInputError

__all__ = ["CONTAINER_MAX", "CONTAINER_MIN", "Grid"]

CONTAINER_MIN, CONTAINER_MAX = -128, 127
"""The ends of the signed 8-bit container."""


@dataclass(frozen=True)
class Grid:
    """The integers ``qmin..qmax`` that a quantizer may emit.

    Attributes:
        qmin: The smallest code, -128 to 0.
        qmax: The largest code, 1 to 127.

    Raises:
        InvalidInputError: The range leaves the signed 8-bit container or does not hold zero.
    """

    qmin: int
    qmax: int

    def __post_init__(self) -> None:
        if not CONTAINER_MIN <= self.qmin <= 0 < self.qmax <= CONTAINER_MAX:
            raise InvalidInputError(
                f"A grid holds 0 and lies within {CONTAINER_MIN}..{CONTAINER_MAX}; "
                f"got {self.qmin}..{self.qmax}."
            )

    @classmethod
    def signed(cls, bits: int) -> Grid:
        """The two's-complement grid ``-2^(bits-1) .. 2^(bits-1) - 1`` for 2 to 8 bits."""
        _check_bits(bits)
        return cls(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    @classmethod
    def unsigned(cls, bits: int) -> Grid:
        """The non-negative grid ``0 .. 2^bits - 1``, ended at 127 by the signed container.

        At 8 bits that is 0..127: the container has no more non-negative codes.
        """
        _check_bits(bits)
        return cls(0, min(2**bits - 1, CONTAINER_MAX))

    @property
    def fills_container(self) -> bool:
        """Whether saturation to the container already is saturation to the grid."""
        return (self.qmin, self.qmax) == (CONTAINER_MIN, CONTAINER_MAX)

    @property
    def is_signed(self) -> bool:
        """Whether the grid has negative codes."""
        return self.qmin < 0


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise InvalidInputError(f"Bit widths go from 2 to 8; got {bits}.")
