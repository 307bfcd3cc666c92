r"""How varied the similarities of patches are, and the loss that raises it (PSAQ-ViT).

Li et al., *Patch Similarity Aware Data-Free Quantization for Vision Transformers*, ECCV 2022,
arXiv 2203.02250. A photograph has a foreground and a background, so the cosine similarities of
its patches spread over many values; those of noise crowd around one. The spread is measured by
the differential entropy of their density,

.. math::
    H = -\int f(u) \ln f(u) \, du, \qquad
    f(u) = \frac{1}{n} \sum_{k=1}^{n} \frac{1}{h \sqrt{2\pi}} \exp\frac{-(u - u_k)^2}{2 h^2}

(eq. 5 to 7 there), with a kernel of width h = 0.01 and the trapezoidal rule on ten points from the
smallest to the largest similarity of the batch, as in the authors' code.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["kernel_density", "patch_entropy", "patch_similarities"]

BANDWIDTH = 0.01
POINTS = 10
DENSITY_FLOOR = 1e-4
"""Added to the density, so that its logarithm is a number where no similarity is near."""


def patch_similarities(
    head_outputs: Tensor,
    batch_size: int,
    *,
    prefix_tokens: int = 0,
    places: Tensor | None = None,
) -> Tensor:
    """Cosine similarity of every ordered pair of patches, each with itself included.

    Args:
        head_outputs: Attention outputs, probabilities times values,
            ``(batch, heads, tokens, head_dim)``; or ``(batch * windows, ...)`` with the windows of
            an image beside each other, where only patches of one window are compared.
        batch_size: Number of images.
        prefix_tokens: How many tokens at the front are no places in the image.
        places: Which tokens of each window of an image are places in it, ``(windows, tokens)``,
            bool; others are left out. None for all.

    Returns:
        ``(batch, pairs)``, single precision, -1 to 1. A patch whose output is zero is similar to
        none, not even to itself.
    """
    patches = head_outputs[:, :, prefix_tokens:].float().mean(dim=1)
    directions = F.normalize(patches, dim=-1, eps=1e-8)
    similarities = directions @ directions.mT
    if places is None:
        return similarities.reshape(batch_size, -1)
    pairs = places[:, :, None] & places[:, None, :]
    return similarities.reshape(batch_size, *pairs.shape)[:, pairs]


def patch_entropy(similarities: Tensor, extent: Tensor | None = None) -> Tensor:
    """Differential entropy of the similarities of each image, the mean over the batch.

    The ten points are where they are for all images alike, and get no gradient.

    Args:
        similarities: What :func:`patch_similarities` returned.
        extent: The smallest and the largest similarity of the batch, ``(2,)``, where
            ``similarities`` are those of some of its images only; None where they are all.

    Returns:
        Scalar in nats; 0 where all similarities are equal.
    """
    low, high = similarities.detach().aminmax() if extent is None else extent.unbind()
    points = low + (high - low) * torch.linspace(0, 1, POINTS, device=similarities.device)
    density = kernel_density(similarities, points) + DENSITY_FLOOR
    return torch.trapezoid(-density * density.log(), points, dim=-1).mean()


def kernel_density(samples: Tensor, points: Tensor) -> Tensor:
    """Gaussian kernel density estimate of each row, with a kernel of width :data:`BANDWIDTH`.

    Args:
        samples: ``(batch, samples)``, single precision.
        points: ``(points,)``; they get no gradient.

    Returns:
        ``(batch, points)``, per unit of ``samples``.
    """
    density: Tensor = _KernelDensity.apply(samples, points)
    return density


class _KernelDensity(torch.autograd.Function):
    """One point at a time, forward and backward.

    Automatic differentiation would keep several tensors of batch x points x samples for every
    layer: gigabytes for 32 images of 196 patches.
    """

    @staticmethod
    def forward(ctx: Any, samples: Tensor, points: Tensor) -> Tensor:
        ctx.save_for_backward(samples, points)
        return torch.stack([_kernel(samples, point)[0].mean(dim=-1) for point in points], dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        samples, points = ctx.saved_tensors
        result = torch.zeros_like(samples)
        # d/du_k of exp(-(u - u_k)^2 / 2h^2) is itself times (u - u_k) / h^2.
        shares = gradient / (samples.shape[-1] * BANDWIDTH)
        for point, share in zip(points, shares.unbind(dim=-1), strict=True):
            kernel, distance = _kernel(samples, point)
            result.addcmul_(kernel.mul_(distance), share[:, None])
        return result, None


def _kernel(samples: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """The kernels of all samples at a point, and its distance to them in widths of the kernel."""
    distance = (point - samples).div_(BANDWIDTH)
    kernel = distance.square().mul_(-0.5).exp_().mul_(1 / (BANDWIDTH * math.sqrt(2 * math.pi)))
    return kernel, distance
