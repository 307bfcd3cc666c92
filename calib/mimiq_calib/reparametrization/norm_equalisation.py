r"""Per-channel shift and scale of LayerNorm outputs, folded into their neighbours.

With a shift z and a factor d for each channel, :math:`y' = (y - z) / d` is what the LayerNorm
gives with :math:`\gamma / d` and :math:`(\beta - z) / d`, and the Linear layers after it take
:math:`W \, \mathrm{diag}(d)` and :math:`b + W z`. The function stays; the range of one grid for
all channels fits each of them. The factor is :math:`d_c = r_c^\alpha` for half-ranges
:math:`r_c`: RepQ-ViT (arXiv 2212.08254) has :math:`\alpha = 1`, SmoothQuant (arXiv 2211.10438) a
fixed compromise; here each layer gets the :math:`\alpha` with the least error of its own output.

The factor alone needs no bias, and leaves zeros that pad the output as they are: where the shift
would not be exact, z is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mimiq_calib.quantizers.learned_step import quantize_to_codes
from mimiq_calib.quantizers.range_search import mse_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimiq_calib.reparametrization.statistics import ChannelStatistics
    from mimiq_runtime.grid import Grid

__all__ = ["channel_ranges", "choose_factor", "equalise_norm"]

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
TAIL = 0.001
"""Share of the rows on either side that a channel's range leaves out."""


def equalise_norm(
    norm: nn.LayerNorm,
    layers: Sequence[nn.Linear],
    outputs: ChannelStatistics,
    *,
    weight_grid: Grid,
    activation_grid: Grid,
    shift: bool = True,
) -> float:
    """Shift and scale the channels of a LayerNorm's output for the grids that follow.

    Args:
        norm: With a weight; changed.
        layers: Every Linear layer that takes its output; changed.
        outputs: Statistics of the LayerNorm's output.
        weight_grid: Grid of the layers' weights.
        activation_grid: Grid of the LayerNorm's output.
        shift: Whether channels are shifted, not only scaled. The LayerNorm and each layer need a
            bias for it, and nothing may be put between them that is not shifted, too.

    Returns:
        The strength that was chosen, 0 (shift only) to 1 (all channels have the same range).
    """
    rows = outputs.rows()
    middle, half_range = channel_ranges(rows)
    if not shift:
        middle, half_range = torch.zeros_like(middle), half_range + middle.abs()
    weight = torch.cat([layer.weight for layer in layers])
    strength, factor = choose_factor(
        rows - middle,
        half_range,
        weight,
        weight_grid=weight_grid,
        activation_grid=activation_grid,
    )
    if shift:
        _fold_shift(norm, layers, middle)
    _fold_factor(norm, layers, factor)
    return strength


def channel_ranges(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and half of the range of each channel, without its extreme tails.

    Args:
        rows: ``(rows, channels)``.

    Returns:
        Middles and half-ranges, ``(channels,)`` each; half-ranges are positive.
    """
    tail = torch.tensor([TAIL, 1 - TAIL], device=rows.device)
    low, high = torch.quantile(rows, tail, dim=0)
    # A channel that never changes has no range; it shall not become infinitely fine.
    smallest = 1e-3 * float((high - low).max()) + 1e-12
    return (low + high) / 2, ((high - low) / 2).clamp_min(smallest)


def choose_factor(
    centred: Tensor,
    half_range: Tensor,
    weight: Tensor,
    *,
    weight_grid: Grid,
    activation_grid: Grid,
) -> tuple[float, Tensor]:
    """The factors between a tensor's channels and the next weight with the least output error.

    Args:
        centred: Rows of the tensor, ``(rows, channels)``, each channel around zero.
        half_range: Half of the range of each channel, ``(channels,)``, positive.
        weight: What multiplies it next, ``(outputs, channels)``.
        weight_grid: Grid of the weight.
        activation_grid: Grid of the tensor.

    Returns:
        The strength, 0 to 1, and the factors, ``(channels,)``: the tensor is to be divided by
        them and the weight multiplied.
    """
    exact = centred @ weight.T
    best, least = (0.0, torch.ones_like(half_range)), torch.inf
    for strength in STRENGTHS:
        factor = _factor(half_range, strength)
        inputs = _quantized(centred / factor, activation_grid, per_row=False)
        weights = _quantized(weight * factor, weight_grid, per_row=True)
        error = float((inputs @ weights.T - exact).square().mean())
        if error < least:
            best, least = (strength, factor), error
    return best


def _factor(half_range: Tensor, strength: float) -> Tensor:
    factor = half_range**strength
    # The common part is left to the quantizer's scale: weights stay about as large as they were.
    return factor / factor.log().mean().exp()


def _quantized(values: Tensor, grid: Grid, *, per_row: bool) -> Tensor:
    flat = values if per_row else values.reshape(1, -1)
    scale = mse_scale(flat, grid, candidates=24)[:, None]
    return (quantize_to_codes(flat, scale, grid) * scale).view_as(values)


def _fold_shift(norm: nn.LayerNorm, layers: Sequence[nn.Linear], shift: Tensor) -> None:
    norm.bias.data.sub_(shift)
    for layer in layers:
        layer.bias.data.add_(layer.weight @ shift)


def _fold_factor(norm: nn.LayerNorm, layers: Sequence[nn.Linear], factor: Tensor) -> None:
    norm.weight.data.div_(factor)
    if norm.bias is not None:
        norm.bias.data.div_(factor)
    for layer in layers:
        layer.weight.data.mul_(factor)
