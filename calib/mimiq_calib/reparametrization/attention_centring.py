r"""Centring keys and values, exactly and for nothing.

Keys: a constant c taken from every key changes all logits of a query by the same
:math:`-q^\top c`, and softmax does not see it. Values: every row of probabilities sums to one,
so :math:`P V = P (V - 1 c^\top) + 1 c^\top`, and the constant moves through the projection into
its bias. Both constants come out of the bias of the qkv layer. Centred values are quantized on a
symmetric grid without waste, and what quantizing the probabilities takes from their row sums no
longer meets a common offset of the values.

Neither a position bias nor a mask changes this: both are added to the logits. Tokens that pad a
window are zeros, so their keys and values are the bias and lose the constant as all others do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from mimiq_calib.conversion.attention import ExposedAttention
    from mimiq_calib.reparametrization.statistics import ChannelStatistics

__all__ = ["centre_keys_and_values", "centring_applies"]


def centring_applies(attention: ExposedAttention) -> bool:
    """Whether an attention has a bias to take the constants from and nothing between.

    A normalisation of the keys, or of the outputs before the projection, or a gate on them,
    would have to commute with a constant, and does not.
    """
    plain = all(isinstance(part, nn.Identity) for part in (attention.k_norm, attention.norm))
    makers = [attention.rows_of("key"), attention.rows_of("value")]
    layers = [attention.proj, *(maker and maker[0] for maker in makers)]
    biased = all(isinstance(layer, nn.Linear) and layer.bias is not None for layer in layers)
    return plain and biased and attention.gate is None


def centre_keys_and_values(attention: ExposedAttention, inputs: ChannelStatistics) -> None:
    """Take the mean key and the mean value out of the biases of the layers that make them.

    Args:
        attention: One to which centring applies; it is changed, its function is not.
        inputs: Statistics of the attention's input: its mean gives the mean key and value.
    """
    mean_input = inputs.mean().to(next(attention.parameters()).device)
    _take_mean_out(attention.rows_of("key"), mean_input)
    value_mean = _take_mean_out(attention.rows_of("value"), mean_input)
    proj = attention.proj
    assert isinstance(proj, nn.Linear)
    proj.bias.data += proj.weight @ value_mean


def _take_mean_out(maker: tuple[nn.Linear, slice] | None, mean_input: Tensor) -> Tensor:
    assert maker is not None  # centring applies
    layer, rows = maker
    mean: Tensor = layer(mean_input)[rows]
    layer.bias.data[rows] -= mean
    return mean
