"""Linear layers and convolutions with quantizers on input and weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from mimiq_calib.quantizers.quantizer import Quantizer

__all__ = ["QuantizedConv2d", "QuantizedLinear"]


class QuantizedLinear(nn.Module):
    """A Linear whose input and weight are quantized; the bias stays in floating point.

    Args:
        linear: The layer whose parameters are taken over.
        input_quantizer: Stands on the input, ``(..., in_features)``.
        weight_quantizer: Stands on the weight, ``(out_features, in_features)``.
    """

    def __init__(
        self, linear: nn.Linear, input_quantizer: Quantizer, weight_quantizer: Quantizer
    ) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.input_quantizer = input_quantizer
        self.weight_quantizer = weight_quantizer

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        return F.linear(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)


class QuantizedConv2d(nn.Module):
    """A two-dimensional convolution whose input and weight are quantized.

    Args:
        convolution: The layer whose parameters and geometry are taken over.
        input_quantizer: Stands on the input, ``(batch, in_channels, height, width)``.
        weight_quantizer: Stands on the weight, ``(out_channels, in_channels / groups, kh, kw)``.
    """

    def __init__(
        self, convolution: nn.Conv2d, input_quantizer: nn.Module, weight_quantizer: Quantizer
    ) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.bias = convolution.bias
        self.stride = convolution.stride
        self.padding = convolution.padding
        self.dilation = convolution.dilation
        self.groups = convolution.groups
        self.input_quantizer = input_quantizer
        self.weight_quantizer = weight_quantizer

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, h, w)`` to ``(batch, out_channels, h', w')``."""
        return F.conv2d(
            self.input_quantizer(x),
            self.weight_quantizer(self.weight),
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
