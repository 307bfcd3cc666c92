from __future__ import annotations

import numpy as np
import pytest
import torch

from mimiq_calib.quantizers.grid_choice import choose_grid
from mimiq_calib.quantizers.learned_step import learned_step_quantize, quantize_to_codes
from mimiq_calib.quantizers.quantizer import Quantizer, Skew
from mimiq_calib.quantizers.range_search import RangeMethod, mse_scale
from mimiq_runtime.grid import Grid
from mimiq_runtime.quantization_table import TensorKind


def gelu() -> torch.Tensor:
    x = 2 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.gelu(x)


def normal() -> torch.Tensor:
    return torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))


def choose(values: torch.Tensor, bits: int, skew: Skew, method: str = "mse") -> Grid:
    return choose_grid(
        values, bits, RangeMethod(method), percentile=99.9, standard=Grid.signed(bits), skew=skew
    )


def squared_error(values: torch.Tensor, grid: Grid) -> float:
    scale = float(mse_scale(values, grid))
    x = values.double().numpy()
    return float(np.square(np.clip(np.round(x / scale), grid.qmin, grid.qmax) * scale - x).mean())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("method", list(RangeMethod))
def test_a_skewed_tensor_gets_a_skewed_grid(bits: int, method: RangeMethod) -> None:
    grid = choose(gelu(), bits, Skew.ANY, method)
    assert grid.qmax - grid.qmin == 2**bits - 1, "as many codes as before"
    assert -grid.qmin < 2 ** (bits - 1) / 2
    assert squared_error(gelu(), grid) < 0.6 * squared_error(gelu(), Grid.signed(bits))


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_no_other_grid_is_better(bits: int) -> None:
    """Every number of negative codes, each with the scale of a finer search."""
    errors = {
        negative: squared_error(gelu(), Grid.skewed(bits, negative))
        for negative in range(2**bits - 1)
    }
    # Grids are compared with coarser scales than these.
    assert squared_error(gelu(), choose(gelu(), bits, Skew.ANY)) <= 1.05 * min(errors.values())


def test_what_each_skew_allows() -> None:
    assert choose(gelu(), 4, Skew.NONE) == Grid.signed(4)
    assert choose(gelu(), 8, Skew.NONE) == Grid.signed(8)
    # At 4 bits every grid is within the container; at 8 bits none but the symmetric one.
    assert choose(gelu(), 4, Skew.CONTAINER) == choose(gelu(), 4, Skew.ANY) != Grid.signed(4)
    assert choose(gelu(), 8, Skew.CONTAINER) == Grid.signed(8)
    beyond = choose(gelu(), 8, Skew.ANY)
    assert beyond.offset != 0
    assert -128 <= beyond.stored.qmin < beyond.stored.qmax <= 127


@pytest.mark.parametrize("bits", [4, 8])
def test_negative_tensors_too(bits: int) -> None:
    grid, mirrored = choose(-gelu(), bits, Skew.ANY), choose(gelu(), bits, Skew.ANY)
    assert grid.qmax < -grid.qmin
    assert abs(-grid.qmin - mirrored.qmax) <= 2 ** max(0, bits - 5)


def test_symmetric_tensors_keep_about_half() -> None:
    grid = choose(normal(), 4, Skew.ANY)
    assert 6 <= -grid.qmin <= 9


def test_zeros_keep_the_standard_grid() -> None:
    assert choose(torch.zeros(1, 50), 4, Skew.ANY) == Grid.signed(4)


@pytest.mark.parametrize("negative", [0, 1, 17, 100, 128, 200, 254])
def test_grids_beyond_the_container_quantize_as_the_integers_say(negative: int) -> None:
    """An engine adds offset * scale, quantizes to the container, and takes the offset off."""
    grid, scale = Grid.skewed(8, negative), 0.03
    x = 4 * torch.randn(3, 500, generator=torch.Generator().manual_seed(1))
    x[0, :2] = torch.tensor([1e9, -1e9])
    codes = quantize_to_codes(x, torch.tensor(scale), grid).numpy()
    step = np.float32(scale)
    moved = (x.numpy() + np.float32(grid.offset * step)).astype(np.float32)
    stored = np.clip(np.round(moved / step), -128, 127)
    np.testing.assert_array_equal(codes, stored - grid.offset)
    assert codes.min() == grid.qmin
    assert codes.max() == grid.qmax
    # But for roundings of the sum at ties these are the grid's own codes.
    plain = np.clip(np.round(x.double().numpy() / scale), grid.qmin, grid.qmax)
    assert np.mean(codes != plain) < 1e-3

    quantizer = Quantizer("q", TensorKind.ACTIVATION, 8, grid, skew=Skew.ANY)
    quantizer.scale.data.fill_(scale)
    np.testing.assert_array_equal(quantizer.codes(x).numpy(), stored.astype(np.int8))
    expected = codes * np.float32(scale)
    np.testing.assert_array_equal(quantizer(x).detach().numpy(), expected)
    row = quantizer.describe()
    assert (row.qmin, row.qmax) == (grid.qmin, grid.qmax)
    assert row.shift == (pytest.approx(grid.offset * scale) if grid.offset else None)


def test_gradient_of_a_grid_beyond_the_container() -> None:
    grid = Grid.skewed(8, 5)
    x = torch.tensor([-100.0, 1.3, 200.4, 9000.0], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    learned_step_quantize(x, scale, grid).sum().backward()
    assert x.grad is not None
    assert scale.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert float(scale.grad) == pytest.approx(-5 - 0.3 - 0.4 + 250, rel=1e-5)
