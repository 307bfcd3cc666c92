"""MimiQ's synthesis of one batch of images (arXiv 2407.20021, stage 1).

The loss is ``head_similarity_weight * L_IHC + class_weight * CE + total_variation_weight * TV``;
see docs/method.md, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimiq_calib.pixels import PixelScale
from mimiq_calib.precision import autocast, resolve_precision
from mimiq_calib.synthesis.augmentation import SynthesisAugmentation
from mimiq_calib.synthesis.head_similarity import inter_head_loss, mean_head_similarity
from mimiq_calib.synthesis.layer_similarity import layer_similarities
from mimiq_calib.synthesis.total_variation import total_variation
from mimiq_calib.taps import attention_taps
from mimiq_runtime.errors import DivergedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mimiq_calib.recipe import Precision, SynthesisSettings
    from mimiq_runtime.manifest import Preprocessing

__all__ = ["SynthesisedBatch", "synthesise_batch"]


@dataclass(frozen=True)
class SynthesisedBatch:
    """One batch of finished images.

    Attributes:
        images: uint8 pixels, ``(batch, channels, height, width)``.
        labels: The random classes they were made for, int64, ``(batch,)``.
        metrics: The losses of the first, the last and some steps between.
    """

    images: Tensor
    labels: Tensor
    metrics: list[dict[str, float]]


def synthesise_batch(
    teacher: nn.Module,
    settings: SynthesisSettings,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_classes: int,
    generator: torch.Generator,
    device: torch.device,
    advance: Callable[[int, str], None],
) -> SynthesisedBatch:
    """Optimise a batch of images from noise until the teacher's heads agree on them.

    Args:
        teacher: Full-precision model with exposed attention and frozen parameters.
        settings: Losses, schedule and augmentation.
        preprocessing: Size of the input and the range of real pixels.
        batch_size: How many images.
        num_classes: Labels are drawn from ``0 .. num_classes - 1``.
        generator: Source of all randomness, on the CPU.
        device: Where the teacher is.
        advance: Called after every step with the number of steps and a note.

    Raises:
        DivergedError: The loss is no longer finite.
    """
    pixel_scale = PixelScale(preprocessing, device)
    shape = (batch_size, *preprocessing.input_size)
    images = torch.randn(shape, generator=generator).to(device).requires_grad_()
    labels = torch.randint(0, num_classes, (batch_size,), generator=generator).to(device)
    optimizer = torch.optim.AdamW(
        [images], lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=settings.iterations, eta_min=settings.final_learning_rate
    )
    augment = SynthesisAugmentation(
        preprocessing.input_size[1:],
        settings.iterations,
        jitter=settings.jitter,
        flip=settings.flip,
        generator=generator,
    )
    precision = resolve_precision(settings.precision, device)
    objective = _Objective(teacher, settings, labels, precision)
    metrics = []
    report_every = max(1, settings.iterations // 10)
    for step in range(settings.iterations):
        optimizer.zero_grad()
        loss, losses = objective(images, augment(images, step))
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            pixel_scale.clamp_(images)
        if step % report_every == 0 or step == settings.iterations - 1:
            metrics.append({"step": step, **_finite(losses, step)})
        advance(1, f"head similarity {metrics[-1]['head_similarity']:.3f}")
    return SynthesisedBatch(pixel_scale.to_pixels(images.detach()).cpu(), labels.cpu(), metrics)


class _Objective:
    """The three losses of one step."""

    def __init__(
        self,
        teacher: nn.Module,
        settings: SynthesisSettings,
        labels: Tensor,
        precision: Precision,
    ) -> None:
        self._teacher = teacher
        self._settings = settings
        self._labels = labels
        self._precision = precision

    def __call__(self, images: Tensor, augmented: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self._settings
        with (
            attention_taps(self._teacher, "logits") as taps,
            autocast(self._precision, images.device),
        ):
            class_logits = self._teacher(augmented)
            logits = list(taps)
        similarities = layer_similarities(self._teacher, logits)
        heads = torch.stack([inter_head_loss(layer) for layer in similarities]).mean()
        classes = F.cross_entropy(class_logits.float(), self._labels)
        variation = total_variation(images)
        loss = (
            settings.head_similarity_weight * heads
            + settings.class_weight * classes
            + settings.total_variation_weight * variation
        )
        with torch.no_grad():
            reported = torch.stack([mean_head_similarity(layer) for layer in similarities]).mean()
        losses = {
            "loss": loss.detach(),
            "inter_head": heads.detach(),
            "cross_entropy": classes.detach(),
            "total_variation": variation.detach(),
            "head_similarity": reported,
        }
        return loss, losses


def _finite(losses: dict[str, Tensor], step: int) -> dict[str, float]:
    values = {name: float(value) for name, value in losses.items()}
    if not all(abs(value) < float("inf") for value in values.values()):
        raise DivergedError(
            f"The synthesis of images diverged at step {step}: its losses are {values}; lower "
            "synthesis.learning_rate or set synthesis.precision to fp32."
        )
    return values
