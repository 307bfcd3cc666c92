"""Linear layers and convolutions with quantizers on input and weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from mimiq_calib.quantizers.quantizer import Quantizer

__all__ = ["QuantizedConv2d", "QuantizedLinear"]


class QuantizedLinear(nn.Module):
    """A Linear whose input and weight are quantized; the bias stays in floating point.

    Args:
        linear: The layer whose parameters are taken over.
        input_quantizer: Stands on the input, ``(..., in_features)``.
        weight_quantizer: Stands on the weight, ``(out_features, in_features)``.

    Attributes:
        input_shift: Gives the constant that was added to the input, ``()``, while the layer has
            to take it out again; None when there is none, or the bias does so already.
    """

    def __init__(
        self, linear: nn.Linear, input_quantizer: nn.Module, weight_quantizer: Quantizer
    ) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.input_quantizer = input_quantizer
        self.weight_quantizer = weight_quantizer
        self.input_shift: Callable[[], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        weight = self.weight_quantizer(self.weight)
        return F.linear(self.input_quantizer(x), weight, self._effective_bias(weight))

    @torch.no_grad()
    def fold_input_shift(self) -> None:
        """Let the bias take the shift out, for good: exactly what the forward pass did."""
        if self.input_shift is not None:
            self.bias.copy_(self._effective_bias(self.weight_quantizer(self.weight)))
            self.input_shift = None

    def _effective_bias(self, weight: Tensor) -> Tensor:
        if self.input_shift is None:
            return self.bias
        # By the quantized weight: what it makes of the shift is what has to be taken out, and
        # the error of the weight no longer meets a constant that is larger than the signal.
        return self.bias - weight.sum(dim=1) * self.input_shift()


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
