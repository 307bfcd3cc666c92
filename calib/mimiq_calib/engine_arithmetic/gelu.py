"""GELU with the error function of a vectorised kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mimiq_calib.engine_arithmetic.exponential import kernel_exp, polynomial
from mimiq_calib.engine_arithmetic.fused_multiply_add import fused_multiply_add

__all__ = ["KernelGelu"]

# Minimax coefficients of MLAS, ONNX Runtime's kernel library (gelu_avx512f.cpp), highest power
# first: erf(a) = a + a p(a^2) up to the split, 1 - exp(-(a + a p(a))) beyond it.
_SATURATED = 3.925
_SPLIT = 0.921875
_NEAR = (
    -5.99104969e-4,
    4.99339588e-3,
    -2.67667342e-2,
    1.12818025e-1,
    -3.76124859e-1,
    1.28379151e-1,
)
_FAR = (
    1.72948930e-5,
    -3.83208680e-4,
    3.88393435e-3,
    -2.42545605e-2,
    1.06777847e-1,
    6.34846687e-1,
    1.28717512e-1,
)
_EXP = (1.38319808e-3, 8.37550033e-3, 4.16689515e-2, 1.66664466e-1, 4.99999851e-1, 1.0, 1.0)


class KernelGelu(nn.Module):
    r"""The exact GELU, :math:`\frac{x}{2} (1 + \mathrm{erf}(x / \sqrt 2))` (arXiv 1606.08415).

    Rounded as ONNX Runtime's kernel for x86 rounds. torch's own function takes another neighbour
    for a third of all numbers, this one for none but subnormal results (a test compares with the
    kernel itself).
    """

    @staticmethod
    def applies_to(module: nn.Module) -> bool:
        """Whether a module is the exact GELU, not one of its approximations."""
        return isinstance(module, nn.GELU) and module.approximate == "none"

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to every element."""
        return 0.5 * x * (_erf(x * math.sqrt(0.5)) + 1.0)


def _erf(x: Tensor) -> Tensor:
    magnitude = x.abs().clamp_(max=_SATURATED)
    near = fused_multiply_add(polynomial(_NEAR, magnitude * magnitude), magnitude, magnitude)
    exponent = fused_multiply_add(polynomial(_FAR, magnitude), magnitude, magnitude)
    far = 1.0 - kernel_exp(-exponent, _EXP)
    return torch.where(magnitude > _SPLIT, far, near).copysign(x)
