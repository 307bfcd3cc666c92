r"""Per-channel scale of the attention outputs, folded into values and projection.

Attention mixes tokens and never channels: with a factor d for each channel of each head,
:math:`P (V / d) \cdot \mathrm{diag}(d) W = P V W`. Values are divided through the weight and bias
that make them, the projection is multiplied. The factor is chosen as for LayerNorm outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mimiq_calib.reparametrization.norm_equalisation import channel_ranges, choose_factor

if TYPE_CHECKING:
    from mimiq_calib.conversion.attention import ExposedAttention
    from mimiq_calib.reparametrization.statistics import ChannelStatistics
    from mimiq_runtime.grid import Grid

__all__ = ["equalise_values"]


def equalise_values(
    attention: ExposedAttention,
    outputs: ChannelStatistics,
    *,
    weight_grid: Grid,
    activation_grid: Grid,
) -> float | None:
    """Scale the channels of an attention's output for the grid that follows.

    Args:
        attention: Changed; its function is not. Its ``head_unit`` takes the factor back.
        outputs: Statistics of the projection's input.
        weight_grid: Grid of the projection's weight.
        activation_grid: Grid of its input.

    Returns:
        The strength that was chosen, 0 to 1; None where a normalisation stands before the
        projection, or the layers are not linear, and nothing was changed.
    """
    maker, proj = attention.rows_of("value"), attention.proj
    if (
        maker is None
        or not isinstance(proj, nn.Linear)
        or not isinstance(attention.norm, nn.Identity)
    ):
        return None
    middle, half_range = channel_ranges(outputs.rows())
    strength, factor = choose_factor(
        outputs.rows() - middle,
        half_range,
        proj.weight,
        weight_grid=weight_grid,
        activation_grid=activation_grid,
    )
    layer, rows = maker
    layer.weight.data[rows] /= factor[:, None]
    if layer.bias is not None:
        layer.bias.data[rows] /= factor
    proj.weight.data *= factor
    attention.head_unit = factor.reshape(attention.num_heads, 1, -1)
    return strength
