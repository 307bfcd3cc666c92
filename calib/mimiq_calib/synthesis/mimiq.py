"""MimiQ's synthesis of one batch of images (arXiv 2407.20021, stage 1).

The loss is ``head_similarity_weight * L_IHC + class_weight * CE + total_variation_weight * TV``;
see docs/method.md, section 2.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimiq_calib.pixels import PixelScale
from mimiq_calib.schedules import cosine_factor
from mimiq_calib.synthesis.augmentation import SynthesisAugmentation
from mimiq_calib.synthesis.head_similarity import inter_head_loss, mean_head_similarity
from mimiq_calib.synthesis.layer_similarity import layer_similarities
from mimiq_calib.synthesis.optimisation import Method, SynthesisedBatch, optimise_images
from mimiq_calib.synthesis.total_variation import total_variation

if TYPE_CHECKING:
    from collections.abc import Callable

    from mimiq_calib.recipe import SynthesisSettings
    from mimiq_runtime.manifest import Preprocessing

__all__ = ["SynthesisedBatch", "synthesise_batch"]


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
        InvalidInputError: The loss is no longer finite, the memory of the GPU is not enough, or
            a compilation that the settings insist on fails.
    """
    shape = (batch_size, *preprocessing.input_size)
    noise = torch.randn(shape, generator=generator).to(device)
    labels = torch.randint(0, num_classes, (batch_size,), generator=generator).to(device)
    method = Method(
        place="logits",
        objective=_Objective(teacher, settings, labels),
        augment=SynthesisAugmentation(
            preprocessing.input_size[1:],
            settings.iterations,
            jitter=settings.jitter,
            flip=settings.flip,
            generator=generator,
        ),
        learning_rate=functools.partial(_learning_rate, settings),
        optimizer=functools.partial(
            torch.optim.AdamW,
            weight_decay=settings.weight_decay,
            fused=device.type == "cuda",
        ),
        shown="head_similarity",
        learning_rate_key="synthesis.learning_rate",
    )
    return optimise_images(
        teacher,
        method,
        noise,
        labels,
        settings,
        PixelScale(preprocessing, device),
        advance=advance,
    )


def _learning_rate(settings: SynthesisSettings, step: int) -> float:
    floor = settings.final_learning_rate / settings.learning_rate
    return settings.learning_rate * cosine_factor(step, settings.iterations, floor)


class _Objective:
    """The three losses of one step."""

    def __init__(self, teacher: nn.Module, settings: SynthesisSettings, labels: Tensor) -> None:
        self._head_similarity_weight = settings.head_similarity_weight
        self._class_weight = settings.class_weight
        self._total_variation_weight = settings.total_variation_weight
        self._labels = labels
        self._teacher = teacher

    def __call__(
        self,
        class_logits: Tensor,
        taps: list[Tensor],
        images: Tensor,
        augmented: Tensor,  # the prior is on the images themselves
    ) -> dict[str, Tensor]:
        similarities = layer_similarities(self._teacher, taps)
        heads = torch.stack([inter_head_loss(layer) for layer in similarities]).mean()
        classes = F.cross_entropy(class_logits.float(), self._labels)
        variation = total_variation(images)
        loss = (
            self._head_similarity_weight * heads
            + self._class_weight * classes
            + self._total_variation_weight * variation
        )
        with torch.no_grad():
            reported = torch.stack([mean_head_similarity(layer) for layer in similarities]).mean()
        return {
            "loss": loss,
            "inter_head": heads,
            "cross_entropy": classes,
            "total_variation": variation,
            "head_similarity": reported,
        }
