from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mimiq_calib.quantizers.learned_step import (
    learned_step_quantize,
    lsq_gradient_scale,
    quantize_to_codes,
)
from mimiq_runtime.grid import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

GRIDS = [make(bits) for bits in range(2, 9) for make in (Grid.signed, Grid.unsigned)]
GRID_IDS = [f"{grid.qmin}..{grid.qmax}" for grid in GRIDS]


def reference_codes(x: NDArray[np.float32], scale: NDArray[np.float32], grid: Grid) -> NDArray:
    """eq. 1 of LSQ with ONNX's rounding: one division in single precision, ties to even."""
    with np.errstate(over="ignore", divide="ignore"):
        position = np.divide(x, scale, dtype=np.float32)
    return np.clip(np.round(position), grid.qmin, grid.qmax)


def reference_gradients(
    x: NDArray[np.float64], scale: float, grid: Grid, gradient: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """eq. 5 for the data and eq. 3 for the step, one number at a time."""
    x_gradient, scale_gradient = np.zeros_like(x), 0.0
    for index, value in np.ndenumerate(x):
        position = value / scale
        if position <= grid.qmin:
            slope = float(grid.qmin)
        elif position >= grid.qmax:
            slope = float(grid.qmax)
        else:
            slope = -position + np.round(position)
            x_gradient[index] = gradient[index]
        scale_gradient += slope * gradient[index]
    return x_gradient, scale_gradient


def gradients(
    x: NDArray[np.float64],
    scale: float,
    grid: Grid,
    gradient: NDArray[np.float64],
    gradient_scale: float = 1.0,
) -> tuple[NDArray[np.float64], float]:
    data = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    step = torch.tensor(scale, requires_grad=True)
    out = learned_step_quantize(data, step, grid, gradient_scale=gradient_scale)
    out.backward(torch.tensor(gradient, dtype=torch.float32))
    assert data.grad is not None
    assert step.grad is not None
    return data.grad.double().numpy(), float(step.grad)


@pytest.mark.parametrize("grid", GRIDS, ids=GRID_IDS)
@settings(max_examples=20, deadline=None)
@given(
    x=arrays(np.float32, (3, 5), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=True)),
    scale=st.floats(2.0**-24, 2.0**20, width=32),
)
def test_forward_equals_numpy(x: NDArray[np.float32], scale: float, grid: Grid) -> None:
    step = np.float32(scale)
    codes = reference_codes(x, step, grid)
    np.testing.assert_array_equal(
        quantize_to_codes(torch.from_numpy(x), torch.tensor(scale), grid).numpy(), codes
    )
    np.testing.assert_array_equal(
        learned_step_quantize(torch.from_numpy(x), torch.tensor(scale), grid).numpy(),
        (codes * step).astype(np.float32),
    )


@pytest.mark.parametrize("grid", GRIDS, ids=GRID_IDS)
@pytest.mark.parametrize("scale", [1.0, 0.25, 0.1, 1 / 3, 2.0**-24, 1e-40, 1e30])
def test_ties_and_ends_equal_numpy(grid: Grid, scale: float) -> None:
    step = np.float32(scale)
    codes = np.arange(-300, 300, dtype=np.float32)
    with np.errstate(over="ignore"):
        ties = np.concatenate([(codes + np.float32(0.5)) * step, codes * step])
        near = np.concatenate([np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)])
    x = np.concatenate([ties, near]).astype(np.float32)
    got = quantize_to_codes(torch.from_numpy(x), torch.tensor(scale), grid).numpy()
    np.testing.assert_array_equal(got, reference_codes(x, step, grid))


def test_ties_go_to_even() -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    codes = quantize_to_codes(x, torch.tensor(1.0), Grid.signed(8))
    assert codes.tolist() == [-2, -2, 0, 0, 2, 2, 4]


def test_division_not_multiplication_by_the_reciprocal() -> None:
    x, scale = torch.linspace(-6, 6, 24001), torch.tensor(0.1)
    by_division = np.clip(np.round(x.numpy() / np.float32(0.1)), -128, 127)
    by_reciprocal = np.clip(np.round(x.numpy() * (np.float32(1) / np.float32(0.1))), -128, 127)
    assert (by_division != by_reciprocal).any(), "the case tells the two apart"
    np.testing.assert_array_equal(quantize_to_codes(x, scale, Grid.signed(8)).numpy(), by_division)


@pytest.mark.parametrize("grid", GRIDS, ids=GRID_IDS)
def test_infinities_end_at_the_grid_and_nan_stays(grid: Grid) -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0])
    codes = quantize_to_codes(x, torch.tensor(0.5), grid)
    assert codes[:2].tolist() == [grid.qmax, grid.qmin]
    assert math.isnan(codes[2])
    assert codes[3:].tolist() == [0, 0]


def test_input_is_left_alone() -> None:
    x = torch.tensor([0.3, -7.0])
    quantize_to_codes(x, torch.tensor(1.0), Grid.signed(4))
    learned_step_quantize(x, torch.tensor(1.0), Grid.signed(4))
    assert x.tolist() == pytest.approx([0.3, -7.0])


def test_one_scale_a_channel_is_each_channel_alone() -> None:
    grid = Grid.signed(4)
    x = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    scales = torch.tensor([0.01, 0.1, 1.0, 10.0], requires_grad=True)
    weighting = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1))
    out = learned_step_quantize(x, scales.view(-1, 1, 1), grid)
    out.backward(weighting)
    assert scales.grad is not None
    for channel in range(4):
        alone = learned_step_quantize(x[channel], scales[channel].detach(), grid)
        assert torch.equal(out[channel], alone)
        _, slope = reference_gradients(
            x[channel].double().numpy(),
            float(scales[channel].detach()),
            grid,
            weighting[channel].double().numpy(),
        )
        assert float(scales.grad[channel]) == pytest.approx(slope, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("grid", GRIDS, ids=GRID_IDS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_gradients_equal_equations_3_and_5(grid: Grid, data: st.DataObject) -> None:
    scale = float(np.float32(data.draw(st.floats(0.01, 10.0))))
    # Positions at quarters and eighths from the codes: away from ties, where rounding differs.
    offsets = data.draw(
        st.lists(st.tuples(st.integers(-300, 300), st.integers(-3, 3)), min_size=1, max_size=12)
    )
    x = np.array([np.float32((code + part / 8) * scale) for code, part in offsets], np.float64)
    gradient = np.array(
        [data.draw(st.floats(-2, 2, width=16)) for _ in range(len(x))], dtype=np.float64
    )
    # On an end of the grid itself single and double precision may fall on different sides.
    at_ends = [grid.qmin, grid.qmax]
    gradient[[part == 0 and code in at_ends for code, part in offsets]] = 0.0
    x_expected, scale_expected = reference_gradients(x, scale, grid, gradient)
    x_got, scale_got = gradients(x, scale, grid, gradient)
    np.testing.assert_array_equal(x_got, x_expected)
    # round(v) - v is a small difference of numbers up to 300: 300 * 2^-24 each in single precision.
    assert scale_got == pytest.approx(scale_expected, rel=1e-5, abs=5e-4)


@pytest.mark.parametrize(("x", "expected"), [(-8.0, -8.0), (7.0, 7.0), (-9.1, -8.0), (55.0, 7.0)])
def test_ends_of_the_grid_count_as_clipped(x: float, expected: float) -> None:
    x_gradient, scale_gradient = gradients(np.array([x]), 1.0, Grid.signed(4), np.array([1.0]))
    assert x_gradient.tolist() == [0.0]
    assert scale_gradient == expected


def test_scale_gradient_is_the_finite_difference_where_all_is_clipped() -> None:
    grid, scale = Grid.signed(3), 0.5
    x = np.array([[-9.0, 4.0], [3.0, -2.5]])
    weighting = np.array([[0.5, -1.0], [2.0, 3.0]])

    def loss(step: float) -> float:
        quantized = learned_step_quantize(torch.tensor(x), torch.tensor(step), grid)
        return float((quantized.double() * torch.tensor(weighting)).sum())

    difference = (loss(scale + 2**-6) - loss(scale - 2**-6)) / 2**-5
    assert gradients(x, scale, grid, weighting)[1] == pytest.approx(difference, rel=1e-5)


def test_within_a_cell_the_straight_through_gradient_replaces_the_finite_difference() -> None:
    """Within a cell d(s*code)/ds is the code; eq. 3 takes off what x's own gradient stands for."""
    grid, scale, x = Grid.signed(4), 0.5, np.array([1.1, -0.7, 0.2])
    weighting = np.array([1.0, -2.0, -3.0])

    def loss(step: float) -> float:
        quantized = learned_step_quantize(torch.tensor(x), torch.tensor(step), grid)
        return float((quantized.double() * torch.tensor(weighting)).sum())

    difference = (loss(scale + 2**-8) - loss(scale - 2**-8)) / 2**-7
    x_gradient, scale_gradient = gradients(x, scale, grid, weighting)
    np.testing.assert_array_equal(x_gradient, weighting)
    # Scaling x and s together scales the output: s dL/ds + x dL/dx = L, with both gradients LSQ's.
    assert scale_gradient == pytest.approx(difference - (x / scale) @ weighting, rel=1e-5)
    assert scale * scale_gradient + x @ x_gradient == pytest.approx(loss(scale), rel=1e-5)


def test_gradient_scale_multiplies_only_the_steps_gradient() -> None:
    x, gradient = np.array([0.3, 9.0, -2.2]), np.array([1.0, -2.0, 0.5])
    plain = gradients(x, 0.5, Grid.signed(4), gradient)
    scaled = gradients(x, 0.5, Grid.signed(4), gradient, gradient_scale=0.125)
    np.testing.assert_array_equal(scaled[0], plain[0])
    assert scaled[1] == pytest.approx(0.125 * plain[1])


@pytest.mark.parametrize(("elements", "bits", "expected"), [(7, 4, 1 / 7), (100, 2, 0.1)])
def test_lsq_gradient_scale_by_hand(elements: int, bits: int, expected: float) -> None:
    assert lsq_gradient_scale(elements, Grid.signed(bits)) == pytest.approx(expected)
    assert lsq_gradient_scale(28, Grid.unsigned(8)) == pytest.approx(1 / math.sqrt(28 * 255))


def test_only_the_gradients_asked_for() -> None:
    x = torch.randn(6, requires_grad=True)
    learned_step_quantize(x, torch.tensor(0.5), Grid.signed(4)).sum().backward()
    assert x.grad is not None
    scale = torch.tensor(0.5, requires_grad=True)
    learned_step_quantize(torch.randn(6), scale, Grid.signed(4)).sum().backward()
    assert scale.grad is not None


def test_bfloat16_input_is_computed_in_single_precision() -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    scale = torch.tensor(0.013, requires_grad=True)
    out = learned_step_quantize(x, scale, Grid.signed(8))
    assert out.dtype == torch.float32
    expected = reference_codes(x.detach().float().numpy(), np.float32(0.013), Grid.signed(8))
    np.testing.assert_array_equal(out.detach().numpy(), expected * np.float32(0.013))
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert scale.grad is not None
    assert scale.grad.dtype == torch.float32
