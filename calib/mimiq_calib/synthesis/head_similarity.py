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

from typing import Any

import torch
from torch import Tensor

__all__ = ["head_similarity", "inter_head_loss", "mean_head_similarity"]

C1 = 0.01**2
C2 = 0.03**2
RANGE_EPSILON = 1e-8
CONSTANT_SPREAD = 1e15
"""Makes zeros of a map without variation; its square is still a number in single precision."""


def head_similarity(logits: Tensor, visible: Tensor | None = None) -> Tensor:
    """SSIM of every pair of heads for every query.

    Args:
        logits: ``(..., heads, queries, keys)``, prefix tokens removed, any floating type.
        visible: Which keys belong to a query's map, bool, ``(..., queries, keys)`` with the
            leading axes of ``logits`` or some of the last of them; at least one key for each
            query. Other keys enter no statistic and get no gradient. None for all keys.

    Returns:
        ``(..., queries, heads, heads)``, single precision, symmetric, -1 to 1. A map without
        any variation counts as a map of zeros, and gets no gradient.
    """
    low, high, mean, covariance = _MapStatistics.apply(logits, visible)
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

    Written by hand because the tensors are large and the arithmetic is little: one centred copy
    of the logits is all that is kept, no tensor of heads x heads x queries x keys is formed, and
    the gradient is one batched product, where automatic differentiation takes a dozen passes.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, visible: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        maps = logits.transpose(-3, -2)
        # (..., queries, 1, keys): one mask for all heads.
        hidden = None if visible is None else ~visible[..., None, :]
        low, at_low = _filled(maps, hidden, float("inf")).min(dim=-1)
        high, at_high = _filled(maps, hidden, float("-inf")).max(dim=-1)
        keys = _count_keys(maps, hidden)
        mean = _filled(maps, hidden, 0.0).sum(dim=-1, dtype=torch.float32) / keys
        # Contiguous as (..., queries, heads, keys), so that the product needs no other copy.
        centred = torch.empty(maps.shape, dtype=torch.float32, device=maps.device)
        torch.sub(maps, mean[..., None], out=centred)
        if hidden is not None:
            centred.masked_fill_(hidden, 0.0)
        covariance = centred @ centred.mT / keys[..., None]
        ctx.save_for_backward(centred, at_low, at_high, keys, hidden)
        ctx.dtype = logits.dtype
        return low.float(), high.float(), mean, covariance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        low_gradient, high_gradient, mean_gradient, covariance_gradient = gradients
        centred, at_low, at_high, keys, hidden = ctx.saved_tensors
        # d cov_ij / d x_i = centred_j / keys: centring adds nothing, its rows sum to zero.
        symmetric = (covariance_gradient + covariance_gradient.mT) / keys[..., None]
        gradient = torch.matmul(symmetric, centred)
        gradient += (mean_gradient / keys)[..., None]
        if hidden is not None:
            gradient.masked_fill_(hidden, 0.0)
        gradient.scatter_add_(-1, at_low[..., None], low_gradient[..., None])
        gradient.scatter_add_(-1, at_high[..., None], high_gradient[..., None])
        return gradient.transpose(-3, -2).to(ctx.dtype), None


def _filled(maps: Tensor, hidden: Tensor | None, value: float) -> Tensor:
    return maps if hidden is None else maps.masked_fill(hidden, value)


def _count_keys(maps: Tensor, hidden: Tensor | None) -> Tensor:
    """How many keys each map has, to divide statistics ``(..., queries, heads)`` by."""
    if hidden is None:
        return torch.full((1, 1), maps.shape[-1], dtype=torch.float32, device=maps.device)
    return (~hidden).sum(dim=-1, dtype=torch.float32)
