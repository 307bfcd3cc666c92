r"""Learned step size quantization (LSQ): Esser et al., ICLR 2020, arXiv 1902.08153.

The forward pass is eq. 1 and 2, :math:`\hat x = s \cdot \mathrm{round}(\mathrm{clip}(x / s, q_\min,
q_\max))`, with ties to even as ONNX's QuantizeLinear rounds. The backward pass is eq. 3 (step) and
eq. 5 (data).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mimiq_runtime.grid import Grid

__all__ = ["learned_step_quantize", "lsq_gradient_scale", "quantize_to_codes"]


def quantize_to_codes(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Integer codes of ``x``, as floating-point numbers.

    Args:
        x: Any shape.
        scale: Step of the grid, positive; broadcasts against ``x``.
        grid: The codes that may come out.

    Returns:
        Whole numbers within the grid, in the shape of ``x``. Infinities give the grid's ends;
        NaN stays NaN.
    """
    # A division, as ONNX defines it: multiplying by 1 / scale rounds other values at ties.
    return (x / scale).round_().clamp_(grid.qmin, grid.qmax)


def lsq_gradient_scale(elements: int, grid: Grid) -> float:
    r"""The factor :math:`1 / \sqrt{N \cdot q_\max}` on the step's gradient (section 2.2).

    Args:
        elements: How many numbers share one step: weights of a channel, or features of a tensor.
        grid: The grid of the quantizer.
    """
    return 1.0 / math.sqrt(elements * grid.qmax)


def learned_step_quantize(
    x: Tensor, scale: Tensor, grid: Grid, *, gradient_scale: float = 1.0
) -> Tensor:
    """Quantize to the grid and back, with LSQ's gradients for ``x`` and ``scale``.

    Args:
        x: Any shape; computed in single precision, whatever the autocast type.
        scale: Step of the grid, positive; broadcasts against ``x``.
        grid: The codes that may come out.
        gradient_scale: Factor on the gradient of ``scale``; see :func:`lsq_gradient_scale`.

    Returns:
        Single precision, in the shape of ``x``.
    """
    quantized: Tensor = _LearnedStep.apply(x.float(), scale, grid, gradient_scale)
    return quantized


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, grid: Grid, gradient_scale: float) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.grid = grid
        ctx.gradient_scale = gradient_scale
        return quantize_to_codes(x, scale, grid).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (gradient,) = gradients
        x, scale = ctx.saved_tensors
        grid: Grid = ctx.grid
        # The codes are computed again: keeping them would double the memory of every activation.
        position = x / scale
        # eq. 5: the gradient within the grid, 0 from its ends on, which is what hardtanh's is. On a
        # processor its kernel is ten times as quick as one that picks elements by a mask.
        x_gradient = torch.ops.aten.hardtanh_backward(gradient, position, grid.qmin, grid.qmax)
        scale_gradient = None
        if ctx.needs_input_grad[1]:
            within = position.clamp_(grid.qmin, grid.qmax)
            # eq. 3: round(v) - v within the grid, and the grid's end, which `within` is, beyond it.
            slope = within.round().sub_(within).mul_(gradient)
            inner = slope.sum_to_size(scale.shape)
            # Beyond the grid nothing went to x: there the difference is all of the gradient.
            ends = torch.sub(gradient, x_gradient, out=slope).mul_(within)
            scale_gradient = (inner + ends.sum_to_size(scale.shape)) * ctx.gradient_scale
        return x_gradient if ctx.needs_input_grad[0] else None, scale_gradient, None, None
