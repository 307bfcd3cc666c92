r"""The two losses of MimiQ's second stage (arXiv 2407.20021; docs/method.md, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["logit_distillation_loss", "structural_attention_loss"]

C2 = 0.03**2


def logit_distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float
) -> Tensor:
    r""":math:`T^2 \, \mathrm{KL}(\mathrm{softmax}(z_t / T) \| \mathrm{softmax}(z_q / T))`.

    Args:
        student_logits: ``(batch, classes)``.
        teacher_logits: ``(batch, classes)``.
        temperature: T, positive.

    Returns:
        Scalar in nats, the mean over the batch.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    return divergence * temperature**2


def structural_attention_loss(
    student_heads: Sequence[Tensor], teacher_heads: Sequence[Tensor], *, prefix_tokens: int
) -> Tensor:
    r"""Head-wise structural distance of the attention outputs.

    For each layer, image, head and channel, the student's and the teacher's values over the
    positions are compared by the contrast and structure terms of SSIM:
    :math:`1 - (2 s_{tq} + C_2) / (v_t + v_q + C_2)` with biased moments and
    :math:`C_2 = 0.03^2`; the mean is returned, every layer with the same weight.

    Args:
        student_heads: One tensor a layer, ``(batch, heads, tokens, head_dim)``.
        teacher_heads: The same of the teacher.
        prefix_tokens: How many tokens at the front are no places in the image.

    Returns:
        Scalar, 0 (same structure) to 2.
    """
    layers = [
        _structural_distance(student[:, :, prefix_tokens:], teacher[:, :, prefix_tokens:])
        for student, teacher in zip(student_heads, teacher_heads, strict=True)
    ]
    return torch.stack(layers).mean()


def _structural_distance(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = student.float(), teacher.float()
    student = student - student.mean(dim=2, keepdim=True)
    teacher = teacher - teacher.mean(dim=2, keepdim=True)
    covariance = (student * teacher).mean(dim=2)
    variances = student.square().mean(dim=2) + teacher.square().mean(dim=2)
    return 1 - ((2 * covariance + C2) / (variances + C2)).mean()
