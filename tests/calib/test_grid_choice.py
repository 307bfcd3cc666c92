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

SATURATING = (RangeMethod.PERCENTILE, RangeMethod.LSQ)


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


@pytest.mark.parametrize(
    ("bits", "method"),
    # At 8 bits their saturation is most of the error, whatever the grid: not worth an addition.
    [(b, m) for b in (2, 3, 4, 8) for m in RangeMethod if b < 8 or m not in SATURATING],
)
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


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_symmetric_tensors_keep_the_standard_grid(bits: int) -> None:
    values = torch.cat([normal(), -normal()], dim=1)  # -3..4 is exactly as good as -4..3
    assert choose(values, bits, Skew.ANY) == Grid.signed(bits)


def test_a_grid_that_costs_an_addition_must_be_worth_it() -> None:
    """A little skew: better on a skewed grid of 8 bits, but not by so much."""
    values = normal()
    values = torch.where(values < 0, 0.85 * values, values)
    better = min(squared_error(values, Grid.skewed(8, n)) for n in range(90, 128, 4))
    standard = squared_error(values, Grid.signed(8))
    assert 0.6 * standard < better < 0.99 * standard
    assert choose(values, 8, Skew.ANY) == Grid.signed(8)


def test_zeros_keep_the_standard_grid() -> None:
    assert choose(torch.zeros(1, 50), 4, Skew.ANY) == Grid.signed(4)


@pytest.mark.parametrize("negative", [0, 1, 17, 100, 128, 200, 254])
def test_grids_beyond_the_container_quantize_as_the_integers_say(negative: int) -> None:
    """Codes are of the grid itself; stored ones are moved into int8 by the zero point."""
    grid, scale = Grid.skewed(8, negative), 0.03
    x = 4 * torch.randn(3, 500, generator=torch.Generator().manual_seed(1))
    x[0, :2] = torch.tensor([1e9, -1e9])
    codes = quantize_to_codes(x, torch.tensor(scale), grid).numpy()
    np.testing.assert_array_equal(
        codes, np.clip(np.round(x.numpy() / np.float32(scale)), grid.qmin, grid.qmax)
    )
    assert (codes.min(), codes.max()) == (grid.qmin, grid.qmax)

    quantizer = Quantizer("q", TensorKind.ACTIVATION, 8, grid, skew=Skew.ANY)
    quantizer.scale.data.fill_(scale)
    stored = quantizer.codes(x)
    assert stored.dtype == torch.int8
    np.testing.assert_array_equal(stored.numpy().astype(np.int32), codes + grid.offset)
    expected = codes * np.float32(scale)
    np.testing.assert_array_equal(quantizer(x).detach().numpy(), expected)
    row = quantizer.describe()
    assert (row.qmin, row.qmax, row.zero_point) == (grid.qmin, grid.qmax, grid.offset)


def test_gradient_of_a_grid_beyond_the_container() -> None:
    grid = Grid.skewed(8, 5)
    x = torch.tensor([-100.0, 1.3, 200.4, 9000.0], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    learned_step_quantize(x, scale, grid).sum().backward()
    assert x.grad is not None
    assert scale.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert float(scale.grad) == pytest.approx(-5 - 0.3 - 0.4 + 250, rel=1e-5)
