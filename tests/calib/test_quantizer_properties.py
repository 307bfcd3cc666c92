"""What must hold for every tensor, scale and grid; examples are drawn by hypothesis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mimiq_calib.quantizers.learned_step import learned_step_quantize, quantize_to_codes
from mimiq_calib.quantizers.quantizer import Quantizer
from mimiq_calib.quantizers.range_search import SMALLEST_SCALE, minmax_scale, mse_scale
from mimiq_runtime.grid import CONTAINER_MAX, CONTAINER_MIN, Grid
from mimiq_runtime.quantization_table import TensorKind

if TYPE_CHECKING:
    from numpy.typing import NDArray


quickly = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Any grid that a quantizer may have: signed, unsigned and all that lie between."""
    bits = draw(st.integers(2, 8))
    return Grid.skewed(bits, draw(st.integers(0, 2**bits - 2)))


scales = st.floats(SMALLEST_SCALE, 2.0**20, width=32)
values = arrays(
    np.float32,
    st.integers(1, 12),
    elements=st.floats(-(2.0**24), 2.0**24, width=32, allow_subnormal=True),
)


def codes_of(x: NDArray[np.float32], scale: float, grid: Grid) -> NDArray[np.float64]:
    return quantize_to_codes(torch.from_numpy(x), torch.tensor(scale), grid).double().numpy()


def quantized(x: NDArray[np.float32], scale: float, grid: Grid) -> NDArray[np.float32]:
    return learned_step_quantize(torch.from_numpy(x), torch.tensor(scale), grid).numpy()


@given(bits=st.integers(2, 8), data=st.data())
@quickly
def test_a_grid_holds_zero_and_as_many_codes_as_its_bits_and_fits_its_container(
    bits: int, data: st.DataObject
) -> None:
    negative = data.draw(st.integers(0, 2**bits - 2))
    for grid in (Grid.signed(bits), Grid.unsigned(bits), Grid.skewed(bits, negative)):
        assert grid.qmin <= 0 < grid.qmax
        assert grid.qmax - grid.qmin + 1 == 2**bits
        stored = grid.stored
        assert stored.qmin >= CONTAINER_MIN
        assert stored.qmax <= CONTAINER_MAX
        assert stored.qmin - grid.qmin == stored.qmax - grid.qmax == grid.offset
        inside = grid.qmin >= CONTAINER_MIN and grid.qmax <= CONTAINER_MAX
        assert (grid.offset == 0) == inside, "moved only where it must be"


@given(x=values, scale=scales, grid=grids())
@quickly
def test_codes_are_whole_and_within_the_grid(
    x: NDArray[np.float32], scale: float, grid: Grid
) -> None:
    codes = codes_of(x, scale, grid)
    assert (codes == np.rint(codes)).all()
    assert (codes >= grid.qmin).all()
    assert (codes <= grid.qmax).all()


@given(x=values, scale=scales, grid=grids())
@quickly
def test_codes_equal_numpys_rounding_to_even(
    x: NDArray[np.float32], scale: float, grid: Grid
) -> None:
    position = np.divide(x, np.float32(scale), dtype=np.float32)
    np.testing.assert_array_equal(
        codes_of(x, scale, grid), np.clip(np.rint(position), grid.qmin, grid.qmax)
    )


@given(code=st.integers(-300, 300), exponent=st.integers(-20, 20), grid=grids())
@quickly
def test_half_way_goes_to_the_even_code(code: int, exponent: int, grid: Grid) -> None:
    # Powers of two, so that the middle of two codes is a number in single precision.
    scale = 2.0**exponent
    expected = code if code % 2 == 0 else code + 1
    (got,) = codes_of(np.float32([(code + 0.5) * scale]), scale, grid)
    assert got == min(max(expected, grid.qmin), grid.qmax)


@given(x=values, scale=scales, grid=grids())
@quickly
def test_quantizing_twice_is_quantizing_once(
    x: NDArray[np.float32], scale: float, grid: Grid
) -> None:
    once = quantized(x, scale, grid)
    np.testing.assert_array_equal(quantized(once, scale, grid), once)
    np.testing.assert_array_equal(codes_of(once, scale, grid), codes_of(x, scale, grid))


@given(x=values, scale=scales, grid=grids())
@quickly
def test_larger_values_never_get_smaller_codes(
    x: NDArray[np.float32], scale: float, grid: Grid
) -> None:
    assert (np.diff(codes_of(np.sort(x), scale, grid)) >= 0).all()


@given(x=values, scale=scales, grid=grids())
@quickly
def test_the_error_is_half_a_step_within_the_grid(
    x: NDArray[np.float32], scale: float, grid: Grid
) -> None:
    exact = x.astype(np.float64)
    inside = (exact >= grid.qmin * scale) & (exact <= grid.qmax * scale)
    error = np.abs(quantized(x, scale, grid) - exact)[inside]
    # Division and product each round by 2^-24 of up to 256 steps.
    assert (error <= scale * (0.5 + 256 * 2.0**-23)).all()


@given(x=values, scale=scales, grid=grids(), exponent=st.integers(-3, 3))
@quickly
def test_scaling_values_and_step_by_a_power_of_two_keeps_the_codes(
    x: NDArray[np.float32], scale: float, grid: Grid, exponent: int
) -> None:
    # What is subnormal loses bits when it is scaled; it is code 0 either way.
    x = np.where(np.abs(x) < 2.0**-100, np.float32(0), x)
    factor = np.float32(2.0**exponent)
    np.testing.assert_array_equal(
        codes_of(x * factor, scale * float(factor), grid), codes_of(x, scale, grid)
    )


@given(x=values, scale=scales, grid=grids())
@quickly
def test_stored_codes_stand_for_what_the_forward_pass_gives(
    x: NDArray[np.float32], scale: float, grid: Grid
) -> None:
    bits = int(math.log2(grid.qmax - grid.qmin + 1))
    quantizer = Quantizer("q", TensorKind.ACTIVATION, bits, grid)
    quantizer.scale.data = torch.tensor(scale)
    stored = quantizer.codes(torch.from_numpy(x))
    assert stored.dtype == torch.int8
    # Signed zeros are equal in comparisons.
    expected = (stored.numpy().astype(np.float32) - grid.offset) * np.float32(scale)
    np.testing.assert_array_equal(quantizer(torch.from_numpy(x)).detach().numpy(), expected)


@given(
    x=values,
    scale=scales,
    grid=grids(),
    seed=st.integers(0, 2**16),
)
@quickly
def test_gradients_pass_inside_and_stop_outside(
    x: NDArray[np.float32], scale: float, grid: Grid, seed: int
) -> None:
    data = torch.from_numpy(x).requires_grad_()
    step = torch.tensor(scale, requires_grad=True)
    upstream = torch.randn(len(x), generator=torch.Generator().manual_seed(seed))
    learned_step_quantize(data, step, grid).backward(upstream)
    position = np.divide(x, np.float32(scale), dtype=np.float32)
    inside = (position > grid.qmin) & (position < grid.qmax)
    assert data.grad is not None
    np.testing.assert_array_equal(data.grad.numpy(), np.where(inside, upstream.numpy(), 0.0))
    # eq. 3 of LSQ: at most half a code inside, the end of the grid outside.
    ends = np.where(position <= grid.qmin, grid.qmin, grid.qmax)
    slopes = np.where(inside, np.rint(position) - position, ends).astype(np.float64)
    assert step.grad is not None
    expected = float(slopes @ upstream.double().numpy())
    # Sums of up to twelve products with 255, in single precision.
    assert float(step.grad) == pytest.approx(expected, rel=1e-4, abs=2e-3)


@given(
    rows=arrays(np.float32, (3, 9), elements=st.floats(-1e4, 1e4, width=32)),
    grid=grids(),
)
@quickly
def test_a_min_max_scale_covers_and_no_scale_is_better_than_the_searched_one_at_the_ends(
    rows: NDArray[np.float32], grid: Grid
) -> None:
    x = torch.from_numpy(rows)
    covering, searched = minmax_scale(x, grid), mse_scale(x, grid, candidates=10)
    assert (covering >= SMALLEST_SCALE).all()
    assert (searched >= SMALLEST_SCALE).all()
    reachable = rows if grid.qmin < 0 else np.maximum(rows, 0.0)
    for row, scale in zip(reachable.astype(np.float64), covering.double().tolist(), strict=True):
        slack = 1 + 2.0**-20  # the scale is rounded to single precision
        assert row.max(initial=0.0) <= grid.qmax * scale * slack
        assert row.min(initial=0.0) >= grid.qmin * scale * slack

    def error(scale: torch.Tensor) -> NDArray[np.float64]:
        column = scale[:, None]
        restored = (quantize_to_codes(x, column, grid) * column).double()
        return (restored - x.double()).square().mean(dim=1).numpy()

    # Both errors are compared in single precision by the search.
    assert (error(searched) <= error(covering) * (1 + 1e-5) + 1e-12).all()
