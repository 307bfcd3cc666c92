from __future__ import annotations

import pytest

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.grid import CONTAINER_MAX, CONTAINER_MIN, Grid


@pytest.mark.parametrize(
    ("bits", "signed", "unsigned"),
    [
        (2, (-2, 1), (0, 3)),
        (3, (-4, 3), (0, 7)),
        (4, (-8, 7), (0, 15)),
        (5, (-16, 15), (0, 31)),
        (6, (-32, 31), (0, 63)),
        (7, (-64, 63), (0, 127)),
        (8, (-128, 127), (0, 127)),
    ],
)
def test_grids_by_hand(bits: int, signed: tuple[int, int], unsigned: tuple[int, int]) -> None:
    assert (Grid.signed(bits).qmin, Grid.signed(bits).qmax) == signed
    assert (Grid.unsigned(bits).qmin, Grid.unsigned(bits).qmax) == unsigned
    assert Grid.signed(bits).is_signed
    assert not Grid.unsigned(bits).is_signed
    assert Grid.signed(bits).fills_container == (bits == 8)
    assert not Grid.unsigned(bits).fills_container


def test_container_is_signed_8_bit() -> None:
    assert (CONTAINER_MIN, CONTAINER_MAX) == (-(2**7), 2**7 - 1)


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_other_bit_widths_are_refused(bits: int) -> None:
    for make in (Grid.signed, Grid.unsigned):
        with pytest.raises(InvalidInputError, match=f"from 2 to 8; got {bits}"):
            make(bits)


@pytest.mark.parametrize(
    ("qmin", "qmax"),
    [(-129, 127), (-128, 128), (1, 7), (0, 0), (-8, 0), (-8, -1), (7, -8), (0, 255)],
)
def test_ranges_outside_the_container_or_without_zero_are_refused(qmin: int, qmax: int) -> None:
    with pytest.raises(InvalidInputError, match=rf"got {qmin}\.\.{qmax}"):
        Grid(qmin, qmax)


def test_grids_are_values() -> None:
    assert Grid.signed(4) == Grid(-8, 7)
    assert len({Grid.signed(4), Grid(-8, 7), Grid.unsigned(4)}) == 2
    with pytest.raises(AttributeError):
        Grid(-8, 7).qmin = -7  # type: ignore[misc]
