from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from mimiq_calib.quantizers.quantizer import Quantizer
from mimiq_export.weight_codes import weight_codes
from mimiq_runtime.grid import Grid
from mimiq_runtime.quantization_table import TensorKind


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(6, 40), (6, 3, 4, 4)], ids=["linear", "conv"])
def test_codes_are_those_of_the_torch_quantizer(bits: int, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    quantizer = Quantizer("w", TensorKind.WEIGHT, bits, Grid.signed(bits), channels=6)
    quantizer.scale.data = torch.tensor([0.5, 0.1, 1 / 3, 2.0**-24, 3e-40, 1e30])
    codes = weight_codes(weight.numpy(), quantizer.scale.detach().numpy(), quantizer.grid, axis=0)
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes, quantizer.codes(weight).numpy())
    assert {quantizer.grid.qmin, -1, 0, 1, quantizer.grid.qmax} <= set(codes.flat)


def test_ties_go_to_the_even_code() -> None:
    weight = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5], np.float32)
    codes = weight_codes(weight, np.float32(1.0), Grid.signed(4), axis=None)
    assert codes.tolist() == [-2, -2, 0, 0, 2, 2, 4]


def test_codes_follow_exact_arithmetic_where_no_rounding_of_the_quotient_interferes() -> None:
    scale = np.float32(0.125)
    weight = np.arange(-80, 81, dtype=np.float32) / 64
    expected = [min(7, max(-8, round(Fraction(float(w)) / Fraction(float(scale))))) for w in weight]
    assert weight_codes(weight, scale, Grid.signed(4), axis=None).tolist() == expected


def test_infinities_and_overflowing_quotients_saturate() -> None:
    weight = np.array([-np.inf, np.inf, -3e38, 3e38], np.float32)
    codes = weight_codes(weight, np.float32(1e-3), Grid.signed(3), axis=None)
    assert codes.tolist() == [-4, 3, -4, 3]


def test_the_axis_may_be_any() -> None:
    weight = np.array([[1.0, 10.0], [2.0, 20.0]], np.float32)
    codes = weight_codes(weight, np.array([1.0, 10.0], np.float32), Grid.signed(4), axis=1)
    assert codes.tolist() == [[1, 1], [2, 2]]
