from __future__ import annotations

import pytest

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.grid import CONTAINER_MAX, CONTAINER_MIN, WIDEST, Grid


@pytest.mark.parametrize(
    ("bits", "signed", "unsigned"),
    [
        (2, (-2, 1), (0, 3)),
        (3, (-4, 3), (0, 7)),
        (4, (-8, 7), (0, 15)),
        (5, (-16, 15), (0, 31)),
        (6, (-32, 31), (0, 63)),
        (7, (-64, 63), (0, 127)),
        (8, (-128, 127), (0, 255)),
    ],
)
def test_grids_by_hand(bits: int, signed: tuple[int, int], unsigned: tuple[int, int]) -> None:
    assert (Grid.signed(bits).qmin, Grid.signed(bits).qmax) == signed
    assert (Grid.unsigned(bits).qmin, Grid.unsigned(bits).qmax) == unsigned
    assert Grid.signed(bits).is_signed
    assert not Grid.unsigned(bits).is_signed


def test_container_is_signed_8_bit() -> None:
    assert (CONTAINER_MIN, CONTAINER_MAX) == (-(2**7), 2**7 - 1)
    assert WIDEST == 2**8 - 1


@pytest.mark.parametrize(
    ("grid", "offset", "stored"),
    [
        (Grid.signed(4), 0, (-8, 7)),
        (Grid.signed(8), 0, (-128, 127)),
        (Grid.unsigned(7), 0, (0, 127)),
        (Grid.unsigned(8), -128, (-128, 127)),
        (Grid.skewed(4, 2), 0, (-2, 13)),
        (Grid.skewed(8, 32), -96, (-128, 127)),
        (Grid.skewed(8, 254), 126, (-128, 127)),
        (Grid(-3, 130), -3, (-6, 127)),
        (Grid(-130, 3), 2, (-128, 5)),
    ],
)
def test_a_grid_that_leaves_the_container_is_moved_just_inside(
    grid: Grid, offset: int, stored: tuple[int, int]
) -> None:
    assert grid.offset == offset
    assert (grid.stored.qmin, grid.stored.qmax) == stored


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_skewed_grid_has_the_codes_of_its_bits(bits: int) -> None:
    for negative in range(2**bits - 1):
        grid = Grid.skewed(bits, negative)
        assert (grid.qmin, grid.qmax - grid.qmin) == (-negative, 2**bits - 1)
        assert CONTAINER_MIN <= grid.stored.qmin < grid.stored.qmax <= CONTAINER_MAX
        assert grid.is_signed == (negative > 0)
    for negative in (-1, 2**bits - 1):
        with pytest.raises(InvalidInputError, match="A grid holds 0"):
            Grid.skewed(bits, negative)


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_other_bit_widths_are_refused(bits: int) -> None:
    for make in (Grid.signed, Grid.unsigned):
        with pytest.raises(InvalidInputError, match=f"from 2 to 8; got {bits}"):
            make(bits)


@pytest.mark.parametrize(
    ("qmin", "qmax"),
    [(-129, 127), (-128, 128), (1, 7), (0, 0), (-8, 0), (-8, -1), (7, -8), (0, 256), (-255, 1)],
)
def test_ranges_wider_than_the_container_or_without_zero_are_refused(qmin: int, qmax: int) -> None:
    with pytest.raises(InvalidInputError, match=rf"got {qmin}\.\.{qmax}"):
        Grid(qmin, qmax)


def test_grids_are_values() -> None:
    assert Grid.signed(4) == Grid(-8, 7)
    assert len({Grid.signed(4), Grid(-8, 7), Grid.unsigned(4)}) == 2
    with pytest.raises(AttributeError):
        Grid(-8, 7).qmin = -7  # type: ignore[misc]
