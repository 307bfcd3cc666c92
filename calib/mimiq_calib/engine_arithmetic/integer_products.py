"""Products of integer codes, rescaled once, as integer engines compute them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimiq_calib.quantizers.learned_step import quantize_to_codes

if TYPE_CHECKING:
    from mimiq_calib.conversion.layers import QuantizedConv2d, QuantizedLinear
    from mimiq_calib.quantizers.quantizer import Quantizer
    from mimiq_runtime.grid import Grid

__all__ = ["Codes", "IntegerConv2d", "IntegerLinear", "Requantize", "Rescale"]

_EXACT_BELOW = 2**24
"""Whole numbers up to here are exact in single precision."""


class Codes(nn.Module):
    """Gives the codes of a tensor instead of its quantized values.

    Args:
        quantizer: Calibrated, with one scale in all.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.scale = quantizer.scale
        self.grid = quantizer.grid

    def forward(self, x: Tensor) -> Tensor:
        """Codes as floating-point numbers, in the shape of ``x``."""
        return quantize_to_codes(x, self.scale, self.grid)


class Rescale(nn.Module):
    """Turns sums of products of codes into real numbers.

    Args:
        left: Scale of one operand.
        right: Scale of the other one.
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        super().__init__()
        # The engine multiplies the scales first: one rounding a sum.
        self.register_buffer("scale", (left * right).detach(), persistent=False)
        self.scale: Tensor

    def forward(self, sums: Tensor) -> Tensor:
        """Multiply by both scales at once; single precision."""
        return sums.float() * self.scale


class Requantize(Codes):
    r"""Makes codes of sums by one multiplication, :math:`\mathrm{round}(a \cdot m)`.

    With :math:`m` the scale of the sums over that of the codes, rounded once. So integer engines
    end a product whose result is quantized at once (ONNX's QLinearMatMul), where quantizing the
    rescaled sums would divide by the scale of the codes.

    Args:
        codes: What quantized the rescaled sums.
        of_sums: What rescaled them.
    """

    def __init__(self, codes: Codes, of_sums: Rescale) -> None:
        nn.Module.__init__(self)
        self.scale, self.grid = codes.scale, codes.grid
        multiplier = (of_sums.scale / codes.scale).detach()
        self.register_buffer("multiplier", multiplier, persistent=False)
        self.multiplier: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Codes of whole numbers, as floating-point numbers in the shape of ``x``."""
        return torch.round(x.float() * self.multiplier).clamp(self.grid.qmin, self.grid.qmax)


class IntegerLinear(nn.Module):
    """A quantized Linear on codes: exact sums, one rescaling, then the bias.

    Args:
        linear: Calibrated; it is not changed.
    """

    def __init__(self, linear: QuantizedLinear) -> None:
        super().__init__()
        inputs, weights = linear.input_quantizer, linear.weight_quantizer
        self.codes = Codes(inputs)
        self.rescale = Rescale(inputs.scale, weights.scale)
        self.bias = linear.bias
        codes = quantize_to_codes(linear.weight.detach(), weights.scale[:, None], weights.grid)
        dtype = _exact_type(linear.weight.shape[1], inputs.grid, weights.grid)
        self.register_buffer("weight", codes.to(dtype), persistent=False)
        self.weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        sums = F.linear(self.codes(x).to(self.weight.dtype), self.weight)
        product: Tensor = self.rescale(sums)
        return product if self.bias is None else product + self.bias


class IntegerConv2d(nn.Module):
    """A quantized convolution on codes: exact sums, one rescaling, then the bias.

    Args:
        convolution: Calibrated, with an input quantizer; it is not changed.
    """

    def __init__(self, convolution: QuantizedConv2d, input_quantizer: Quantizer) -> None:
        super().__init__()
        weights = convolution.weight_quantizer
        self.codes = Codes(input_quantizer)
        self.rescale = Rescale(input_quantizer.scale, weights.scale[:, None, None])
        self.bias = convolution.bias
        self.stride = convolution.stride
        self.padding = convolution.padding
        self.dilation = convolution.dilation
        self.groups = convolution.groups
        codes = quantize_to_codes(
            convolution.weight.detach(), weights.scale[:, None, None, None], weights.grid
        )
        # Fast algorithms for convolutions are not exact in single precision.
        self.register_buffer("weight", codes.double(), persistent=False)
        self.weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, h, w)`` to ``(batch, out_channels, h', w')``."""
        sums = F.conv2d(
            self.codes(x).double(),
            self.weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        product: Tensor = self.rescale(sums)
        return product if self.bias is None else product + self.bias[:, None, None]


def _exact_type(terms: int, left: Grid, right: Grid) -> torch.dtype:
    """The narrowest type in which every sum of that many products is exact, in any order."""
    largest = terms * _magnitude(left) * _magnitude(right)
    return torch.float32 if largest <= _EXACT_BELOW else torch.float64


def _magnitude(grid: Grid) -> int:
    return max(-grid.qmin, grid.qmax)
