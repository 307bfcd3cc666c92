r"""Similarity of attention heads, and the loss that raises it (MimiQ, arXiv 2407.20021).

For one query, each head's logits over the keys are one map. Two maps are compared by the
structural similarity index (Wang et al. 2004) with one window over the whole map:

.. math::
    \mathrm{SSIM}_{ij} = \frac{(2 m_i m_j + C_1)(2 s_{ij} + C_2)}
                              {(m_i^2 + m_j^2 + C_1)(v_i + v_j + C_2)}

with means m, biased variances v and covariance s over the keys, after each map was normalised
to the range 0 to 1, :math:`C_1 = 0.01^2` and :math:`C_2 = 0.03^2`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["head_similarity", "inter_head_loss", "mean_head_similarity"]

C1 = 0.01**2
C2 = 0.03**2
RANGE_EPSILON = 1e-8
CONSTANT_SPREAD = 1e15
"""Makes zeros of a map without variation; its square is still a number in single precision."""

BLOCK_ELEMENTS = 256 * 1024
"""Elements of the logits that are worked on together: 1 MiB, which stays in a core's cache."""


def head_similarity(
    logits: Tensor, visible: Tensor | None = None, *, prefix_tokens: int = 0
) -> Tensor:
    """SSIM of every pair of heads for every query.

    Args:
        logits: ``(batch, ..., heads, queries, keys)``, any floating type.
        visible: Which keys belong to a query's map, bool, ``(..., queries, keys)`` with the
            leading axes of ``logits`` or some of the last of them; at least one key for each
            query. Other keys enter no statistic and get no gradient. None for all keys.
        prefix_tokens: How many queries and keys at the front are no places in the image; they
            are left out of ``logits``, which is cheaper here than as a slice before, whose
            gradient would be copied into zeros. ``visible`` is without them.

    Returns:
        ``(batch, ..., queries, heads, heads)``, single precision, symmetric, -1 to 1. A map
        without any variation counts as a map of zeros, and gets no gradient.
    """
    low, high, mean, covariance = _MapStatistics.apply(logits, visible, prefix_tokens)
    # SSIM of normalised maps from the statistics of raw ones: normalising is affine.
    # Rounding of a constant map's mean, divided by next to nothing, would be any number.
    spread = (high - low + RANGE_EPSILON).masked_fill(high == low, CONSTANT_SPREAD)
    means = ((mean - low) / spread)[..., None]
    covariances = covariance / (spread[..., None] * spread[..., None, :])
    variances = covariances.diagonal(dim1=-2, dim2=-1)[..., None]
    luminance = (2 * means * means.mT + C1) / (means.square() + means.mT.square() + C1)
    structure = (2 * covariances + C2) / (variances + variances.mT + C2)
    similarity: Tensor = luminance * structure
    return similarity


def inter_head_loss(similarity: Tensor) -> Tensor:
    """Mean of ``1 - SSIM^2`` over images, queries and ordered pairs of heads.

    As in the published method, a head's pair with itself counts (with a loss of nearly zero),
    and anti-aligned maps count as similar.

    Args:
        similarity: What :func:`head_similarity` returned.

    Returns:
        Scalar, 0 (all heads alike) to 1.
    """
    return (1 - similarity.square()).mean()


def mean_head_similarity(similarity: Tensor) -> Tensor:
    """Mean SSIM over images, queries and pairs of different heads: the figure for reports.

    Args:
        similarity: What :func:`head_similarity` returned.

    Returns:
        Scalar, -1 to 1; one head alone is entirely like itself and gives 1.
    """
    heads = similarity.shape[-1]
    if heads == 1:
        return torch.ones((), device=similarity.device)
    off_diagonal = similarity.sum(dim=(-2, -1)) - similarity.diagonal(dim1=-2, dim2=-1).sum(-1)
    return off_diagonal.mean() / (heads * (heads - 1))


class _MapStatistics(torch.autograd.Function):
    """Minimum, maximum, mean and covariances of the maps of each query.

    Written by hand because the tensors are large and the arithmetic is little. No tensor of heads
    x heads x queries x keys is formed, nothing of the size of the logits is kept beside them, and
    the gradient is one batched product, where automatic differentiation takes a dozen passes.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, visible: Tensor | None, prefix: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parts = []
        for block, (maps,) in _blocks(logits, prefix, buffers=1):
            maps.copy_(_without_prefix(logits[block], prefix))
            hidden = _hidden(logits, visible, block)
            low = _filled(maps, hidden, float("inf")).amin(dim=-1)
            high = _filled(maps, hidden, float("-inf")).amax(dim=-1)
            keys = _count_keys(maps, hidden)
            mean = _filled(maps, hidden, 0.0).sum(dim=-1) / keys
            centred = _centre_(maps, mean, hidden)
            covariance = centred @ centred.mT / keys[..., None]
            parts.append((low, high, mean, covariance))
        low, high, mean, covariance = map(torch.cat, zip(*parts, strict=True))
        ctx.save_for_backward(logits, visible, low, high, mean)
        ctx.prefix = prefix
        return low, high, mean, covariance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        low_gradient, high_gradient, mean_gradient, covariance_gradient = gradients
        logits, visible, low, high, mean = ctx.saved_tensors
        result = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        for block, (maps, at, gradient) in _blocks(logits, ctx.prefix, buffers=3):
            maps.copy_(_without_prefix(logits[block], ctx.prefix))
            hidden = _hidden(logits, visible, block)
            keys = _count_keys(maps, hidden)
            # Where a map has its extreme; keys that are equal share its gradient. Looking for them
            # here is several times quicker than keeping their places in the forward pass.
            _mask_(torch.eq(maps, low[block][..., None], out=at), hidden)
            torch.mul(at, (low_gradient[block] / at.sum(dim=-1))[..., None], out=gradient)
            _mask_(torch.eq(maps, high[block][..., None], out=at), hidden)
            gradient.addcmul_(at, (high_gradient[block] / at.sum(dim=-1))[..., None])
            _mask_(gradient.add_((mean_gradient[block] / keys)[..., None]), hidden)
            # d cov_ij / d x_i = centred_j / keys: centring adds nothing, its rows sum to zero.
            covariances = covariance_gradient[block]
            symmetric = (covariances + covariances.mT) / keys[..., None]
            centred = _centre_(maps, mean[block], hidden)
            gradient.flatten(end_dim=-3).baddbmm_(
                symmetric.flatten(end_dim=-3), centred.flatten(end_dim=-3)
            )
            _without_prefix(result[block], ctx.prefix).copy_(gradient)
            result[block][..., : ctx.prefix, :] = 0.0
            result[block][..., : ctx.prefix] = 0.0
        return result, None, None


def _blocks(
    logits: Tensor, prefix: int, *, buffers: int
) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Parts of the batch: a processor works on one while it is in the cache; a GPU on all.

    Yields:
        Which images, and single-precision buffers of the form of their maps,
        ``(images, ..., queries, heads, keys)``; the same memory for every part.
    """
    batch = len(logits)
    size = batch
    if logits.device.type == "cpu":
        size = max(1, min(batch, BLOCK_ELEMENTS * batch // max(1, logits.numel())))
    shape = _without_prefix(logits, prefix).shape[1:]
    memory = torch.empty((buffers, size, *shape), dtype=torch.float32, device=logits.device)
    for first in range(0, batch, size):
        images = min(size, batch - first)
        yield slice(first, first + images), memory[:, :images].unbind()


def _without_prefix(logits: Tensor, prefix: int) -> Tensor:
    """A view as maps, ``(..., queries, heads, keys)``."""
    return logits[..., prefix:, prefix:].transpose(-3, -2)


def _hidden(logits: Tensor, visible: Tensor | None, block: slice) -> Tensor | None:
    """Keys that do not count, ``(..., queries, 1, keys)``: one mask for all heads."""
    if visible is None:
        return None
    return ~visible.expand(*logits.shape[:-3], *visible.shape[-2:])[block][..., None, :]


def _filled(maps: Tensor, hidden: Tensor | None, value: float) -> Tensor:
    return maps if hidden is None else maps.masked_fill(hidden, value)


def _mask_(maps: Tensor, hidden: Tensor | None) -> Tensor:
    return maps if hidden is None else maps.masked_fill_(hidden, 0.0)


def _centre_(maps: Tensor, mean: Tensor, hidden: Tensor | None) -> Tensor:
    return _mask_(maps.sub_(mean[..., None]), hidden)


def _count_keys(maps: Tensor, hidden: Tensor | None) -> Tensor:
    """How many keys each map has, to divide statistics ``(..., queries, heads)`` by."""
    if hidden is None:
        return torch.full((1, 1), maps.shape[-1], dtype=torch.float32, device=maps.device)
    return (~hidden).sum(dim=-1, dtype=torch.float32)
