from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from mimiq_calib.quantizers.range_search import (
    SMALLEST_SCALE,
    RangeMethod,
    lsq_scale,
    minmax_scale,
    mse_scale,
    percentile_scale,
    recomputed_scale,
    search_scale,
)
from mimiq_runtime.grid import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

GRIDS = [Grid.signed(2), Grid.signed(4), Grid.signed(8), Grid.unsigned(4), Grid.unsigned(8)]
COVERING = [method for method in RangeMethod if method is not RangeMethod.LSQ]
"""Those that look at the range; LSQ's rule looks at the mean."""
GRID_IDS = [f"{grid.qmin}..{grid.qmax}" for grid in GRIDS]


def channels() -> torch.Tensor:
    """Gaussian, heavy-tailed, skewed, tiny and huge channels, and one of a few values."""
    generator = np.random.default_rng(3)
    rows = [
        generator.normal(size=400),
        generator.standard_t(2, size=400),
        generator.exponential(size=400) - 0.2,
        1e-5 * generator.normal(size=400),
        1e5 * generator.normal(size=400),
        generator.choice([-1.0, 0.25, 3.0], size=400),
    ]
    return torch.tensor(np.stack(rows), dtype=torch.float32)


def covering(low: NDArray, high: NDArray, grid: Grid) -> NDArray:
    """The smallest step whose grid reaches from low to high."""
    steps = [high / grid.qmax]
    if grid.qmin < 0:
        steps.append(low / grid.qmin)
    return np.max(steps, axis=0)


def squared_error(values: NDArray[np.float32], scale: float, grid: Grid) -> float:
    step = np.float32(scale)
    codes = np.clip(np.round(values / step), grid.qmin, grid.qmax)
    return float(np.mean(np.square((codes * step - values).astype(np.float64))))


@pytest.mark.parametrize("grid", GRIDS, ids=GRID_IDS)
def test_minmax_is_the_smallest_covering_scale(grid: Grid) -> None:
    values = channels()
    scale = minmax_scale(values, grid)
    expected = covering(values.numpy().min(axis=1), values.numpy().max(axis=1), grid)
    np.testing.assert_allclose(scale.numpy(), expected, rtol=1e-6)
    # Nothing saturates (but by rounding), and anything finer would saturate the extreme.
    position = values.double() / scale.double()[:, None]
    assert (position.amax(dim=1) <= grid.qmax * (1 + 1e-6)).all()
    if grid.is_signed:
        assert (position.amin(dim=1) >= grid.qmin * (1 + 1e-6)).all()


@pytest.mark.parametrize("percentile", [50, 75.5, 99, 99.9, 100])
@pytest.mark.parametrize("grid", GRIDS, ids=GRID_IDS)
def test_percentile_is_numpys_linear_one(grid: Grid, percentile: float) -> None:
    values = channels()
    low, high = np.percentile(values.numpy().astype(float), [100 - percentile, percentile], axis=1)
    expected = covering(low, high, grid)
    expected = np.where(expected > 0, np.maximum(expected, SMALLEST_SCALE), 1.0)
    scale = percentile_scale(values, grid, percentile=percentile)
    # Interpolated between single-precision neighbours.
    np.testing.assert_allclose(scale.numpy(), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("grid", GRIDS, ids=GRID_IDS)
@pytest.mark.parametrize("candidates", [1, 7, 80])
def test_mse_is_the_best_of_its_candidates(grid: Grid, candidates: int) -> None:
    values = channels()
    largest = minmax_scale(values, grid).numpy()
    scale = mse_scale(values, grid, candidates=candidates).numpy()
    for channel, row in enumerate(values.numpy()):
        tried = [
            max(np.float32(largest[channel] * np.float32(step / candidates)), SMALLEST_SCALE)
            for step in range(candidates, 0, -1)
        ]
        errors = [squared_error(row, candidate, grid) for candidate in tried]
        # Equally good but for rounding: compare the error, not which of them it is.
        assert squared_error(row, scale[channel], grid) <= min(errors) * (1 + 1e-5)
        assert min(abs(scale[channel] / np.array(tried) - 1)) < 1e-6, "is one of the candidates"


@pytest.mark.parametrize("grid", GRIDS, ids=GRID_IDS)
def test_no_finer_search_is_much_better_than_mse(grid: Grid) -> None:
    values = channels()[:4]
    largest = minmax_scale(values, grid).numpy()
    scale = mse_scale(values, grid).numpy()
    for channel, row in enumerate(values.numpy()):
        starts = np.linspace(0.02, 1.0, 400) * largest[channel]
        best = min(starts, key=lambda step: squared_error(row, step, grid))
        finer = minimize_scalar(
            lambda step: squared_error(row, step, grid),  # noqa: B023 - used at once
            bounds=(0.95 * best, 1.05 * best),
            method="bounded",
        )
        # 80 candidates over the range: the next one is at most a few percent from the best.
        assert squared_error(row, scale[channel], grid) <= 1.15 * finer.fun


def test_mse_beats_minmax_on_outliers() -> None:
    values = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0))
    values[0, 0] = 12.0
    row, grid = values[0].numpy(), Grid.signed(4)
    by_minmax = squared_error(row, float(minmax_scale(values, grid)), grid)
    assert squared_error(row, float(mse_scale(values, grid)), grid) < 0.5 * by_minmax


def test_the_largest_of_equally_good_scales_wins() -> None:
    """Every scale reproduces zeros."""
    assert mse_scale(torch.zeros(2, 5), Grid.signed(2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("method", COVERING)
@pytest.mark.parametrize("grid", GRIDS, ids=GRID_IDS)
def test_degenerate_channels_get_positive_finite_scales(grid: Grid, method: RangeMethod) -> None:
    values = torch.tensor([[0.0] * 4, [2.5] * 4, [-2.5] * 4, [1e-30] * 4, [0.0, 0.0, -1.0, -3.0]])
    scale = search_scale(values, grid, method, percentile=99.0)
    assert torch.isfinite(scale).all()
    assert (scale >= SMALLEST_SCALE).all()
    assert scale[0] == 1.0
    assert scale[1] * grid.qmax == pytest.approx(2.5) or method is RangeMethod.MSE
    # A constant has a scale that holds it exactly, whichever method.
    assert squared_error(values[1].numpy(), float(scale[1]), grid) < 1e-10
    if grid.is_signed:
        assert squared_error(values[2].numpy(), float(scale[2]), grid) < 1e-10
    else:
        assert scale[2] == 1.0, "nothing of it is on the grid: any scale gives zeros"
    assert scale[3] == pytest.approx(SMALLEST_SCALE)


@pytest.mark.parametrize("method", COVERING)
def test_one_sample(method: RangeMethod) -> None:
    scale = search_scale(torch.tensor([[3.5]]), Grid.signed(4), method, percentile=99.9)
    assert scale.shape == (1,)
    assert squared_error(np.array([3.5], np.float32), float(scale), Grid.signed(4)) < 1e-10


def test_search_scale_names_the_methods() -> None:
    values, grid = channels(), Grid.signed(4)
    expected = {
        "minmax": minmax_scale(values, grid),
        "percentile": percentile_scale(values, grid, percentile=97.0),
        "mse": mse_scale(values, grid),
    }
    for name, scale in expected.items():
        got = search_scale(values, grid, RangeMethod(name), percentile=97.0)
        assert torch.equal(got, scale), name
    assert len({float(scale[1]) for scale in expected.values()}) == 3


def test_channels_do_not_mix() -> None:
    values, grid = channels(), Grid.signed(4)
    for method in RangeMethod:
        together = search_scale(values, grid, method, percentile=98.0)
        alone = [search_scale(row[None], grid, method, percentile=98.0) for row in values]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("grid", GRIDS, ids=GRID_IDS)
def test_lsq_starts_from_the_mean_magnitude(grid: Grid) -> None:
    values = channels()
    expected = 2 * np.abs(values.numpy()).mean(axis=1) / np.sqrt(grid.qmax)
    for scale in (
        lsq_scale(values, grid),
        search_scale(values, grid, RangeMethod.LSQ, percentile=99),
    ):
        np.testing.assert_allclose(scale.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_recomputed_scale_is_that_of_the_published_code(bits: int) -> None:
    values = channels()
    expected = 2 * np.abs(values.numpy()).max(axis=1) / (2**bits - 1)
    scale = recomputed_scale(values, Grid.signed(bits))
    np.testing.assert_allclose(scale.numpy(), expected, rtol=1e-6)


def test_channels_of_zeros_get_a_scale_of_one() -> None:
    zeros = torch.zeros(2, 5)
    assert lsq_scale(zeros, Grid.signed(4)).tolist() == [1.0, 1.0]
    assert recomputed_scale(zeros, Grid.signed(4)).tolist() == [1.0, 1.0]
