"""Learning scales in the logarithm: positive by construction, steps in proportion to the scale."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mimiq_calib.conversion.convert import quantizers_of
from mimiq_calib.conversion.layers import QuantizedConv2d, QuantizedLinear
from mimiq_calib.quantizers.range_search import SMALLEST_SCALE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["learn_scales_in_logarithm", "step_as_scales_would_"]


class _Exponential(nn.Module):
    """The scale is the exponential of the parameter that is learned."""

    def forward(self, logarithm: Tensor) -> Tensor:
        # The exponential of a very negative number is 0 in single precision.
        return logarithm.exp().clamp_min(SMALLEST_SCALE)

    def right_inverse(self, scale: Tensor) -> Tensor:
        return scale.log()


@torch.no_grad()
def step_as_scales_would_(logarithms: Sequence[nn.Parameter]) -> None:
    r"""Let steps in proportion to the gradient, SGD's, be those that the scales would make.

    SGD on a scale changes it by :math:`-\eta \, g_s`, a share of :math:`-\eta \, g_s / s`. The
    logarithm's gradient is :math:`s \, g_s`, so that its own step would be :math:`s^2` of that
    share: next to nothing for small scales. AdamW does not need this, it divides by the size of
    the gradient.

    Args:
        logarithms: Natural logarithms of the scales, with gradients, which are divided by the
            square of the scale. Those without a gradient are left alone.
    """
    for logarithm in logarithms:
        if logarithm.grad is not None:
            logarithm.grad.div_((2 * logarithm).exp().clamp_min(SMALLEST_SCALE**2))


@contextlib.contextmanager
def learn_scales_in_logarithm(student: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Replace every quantizer's scale by its logarithm, until the block ends.

    Scales that are recomputed from their weights are not learned: they are frozen, and those of
    the weights as they are in the end when the block ends.

    Args:
        student: A model with calibrated quantizers.

    Yields:
        The parameters that hold the logarithms, in the order of the quantizers.
    """
    for quantizer in quantizers_of(student):
        quantizer.scale.requires_grad_(not quantizer.recomputed)
    quantizers = [quantizer for quantizer in quantizers_of(student) if not quantizer.recomputed]
    logarithms = []
    for quantizer in quantizers:
        parametrize.register_parametrization(quantizer, "scale", _Exponential())
        logarithms.append(quantizer.get_parameter("parametrizations.scale.original"))
    try:
        yield logarithms
    finally:
        for quantizer in quantizers:
            parametrize.remove_parametrizations(quantizer, "scale", leave_parametrized=True)
        for module in student.modules():
            if isinstance(module, QuantizedLinear | QuantizedConv2d):
                quantizer = module.weight_quantizer
                if quantizer.recomputed:
                    quantizer.recompute(module.weight)
