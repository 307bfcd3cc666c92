"""A constant added to a skewed activation, so that a symmetric grid covers it without waste.

GELU's output begins at -0.17 and has no end: half of a symmetric grid would stay empty. Nothing
before it can absorb a shift, so it is one elementwise addition; the layer after it takes the
constant back out (``QuantizedLinear.input_shift``), in the end through its bias.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from mimiq_calib.conversion.layers import QuantizedLinear
from mimiq_calib.quantizers.learned_step import quantize_to_codes
from mimiq_calib.quantizers.range_search import SMALLEST_SCALE

if TYPE_CHECKING:
    from mimiq_calib.reparametrization.statistics import ChannelStatistics
    from mimiq_runtime.grid import Grid

__all__ = [
    "ShiftedActivation",
    "choose_shift",
    "fold_shifts",
    "insert_shifts",
    "link_shifts",
]

CANDIDATES = 64


class ShiftedActivation(nn.Module):
    """An activation function followed by the addition of a learned constant.

    Args:
        activation: The function.

    Attributes:
        shift: The constant, ``()``; zero until it is calibrated.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.shift = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function and add the constant; any shape."""
        shifted: Tensor = self.activation(x) + self.shift
        return shifted


def insert_shifts(model: nn.Module) -> None:
    """Give every MLP's activation function a shift, zero at first.

    Args:
        model: A model with exposed attention; it is changed, its function is not.
    """
    for module in model.modules():
        if isinstance(module, Mlp) and _shift_applies(module):
            module.act = ShiftedActivation(module.act)


def link_shifts(student: nn.Module) -> None:
    """Let the layer after each shift take it out again, while both are learned.

    Args:
        student: A model with shifts and quantizers.
    """
    for module in student.modules():
        if isinstance(module, Mlp) and isinstance(module.act, ShiftedActivation):
            module.fc2.input_shift = functools.partial(getattr, module.act, "shift")


def fold_shifts(student: nn.Module) -> None:
    """Put what takes the shifts out into the biases, for good; the function stays exactly.

    Args:
        student: A model whose shifts were linked and are no longer learned.
    """
    for module in student.modules():
        if isinstance(module, QuantizedLinear):
            module.fold_input_shift()


def choose_shift(activation: ShiftedActivation, outputs: ChannelStatistics, grid: Grid) -> None:
    """Choose the shift that maps the smallest value to the grid's lowest code.

    Args:
        activation: Its shift is set.
        outputs: Statistics of the activation's output, unshifted.
        grid: The grid it will be quantized to.
    """
    values = outputs.rows().flatten()
    low, high = values.min(), values.max()
    if not grid.is_signed or not high > low:
        return
    best_shift, best_error = torch.zeros_like(low), torch.inf
    for step in range(CANDIDATES, 0, -1):
        reach = (high - low) * (step / CANDIDATES)
        scale = (reach / (grid.qmax - grid.qmin)).clamp_min(SMALLEST_SCALE)
        shift = grid.qmin * scale - low
        codes = quantize_to_codes(values + shift, scale, grid)
        error = float((codes.mul_(scale).sub_(shift) - values).square().mean())
        if error < best_error:
            best_shift, best_error = shift, error
    activation.shift.data.copy_(best_shift)


def _shift_applies(mlp: Mlp) -> bool:
    plain = isinstance(mlp.norm, nn.Identity)
    return plain and isinstance(mlp.fc2, nn.Linear) and mlp.fc2.bias is not None
