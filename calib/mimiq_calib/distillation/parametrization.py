"""Learning scales in the logarithm: positive by construction, steps in proportion to the scale."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.utils import parametrize

from mimiq_calib.conversion.convert import quantizers_of
from mimiq_calib.quantizers.range_search import SMALLEST_SCALE

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["learn_scales_in_logarithm"]


class _Exponential(nn.Module):
    """The scale is the exponential of the parameter that is learned."""

    def forward(self, logarithm: Tensor) -> Tensor:
        # The exponential of a very negative number is 0 in single precision.
        return logarithm.exp().clamp_min(SMALLEST_SCALE)

    def right_inverse(self, scale: Tensor) -> Tensor:
        return scale.log()


@contextlib.contextmanager
def learn_scales_in_logarithm(student: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Replace every quantizer's scale by its logarithm, until the block ends.

    Args:
        student: A model with calibrated quantizers.

    Yields:
        The parameters that hold the logarithms, in the order of the quantizers.
    """
    quantizers = list(quantizers_of(student))
    logarithms = []
    for quantizer in quantizers:
        parametrize.register_parametrization(quantizer, "scale", _Exponential())
        logarithms.append(quantizer.get_parameter("parametrizations.scale.original"))
    try:
        yield logarithms
    finally:
        for quantizer in quantizers:
            parametrize.remove_parametrizations(quantizer, "scale", leave_parametrized=True)
