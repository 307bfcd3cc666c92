"""PSAQ-ViT's synthesis of one batch of images (arXiv 2203.02250).

The loss is ``-entropy_weight * H + class_weight * CE + total_variation_weight * |TV - target|``;
see docs/method.md, section 2.6.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimiq_calib.pixels import PixelScale
from mimiq_calib.schedules import warm_up_cosine_factor
from mimiq_calib.synthesis.augmentation import DiagonalRoll
from mimiq_calib.synthesis.layer_similarity import layer_patch_similarities
from mimiq_calib.synthesis.optimisation import Method, SynthesisedBatch, optimise_images
from mimiq_calib.synthesis.patch_entropy import patch_entropy
from mimiq_calib.synthesis.total_variation import total_variation

if TYPE_CHECKING:
    from collections.abc import Callable

    from mimiq_calib.fitting_batch import FittingBatch
    from mimiq_calib.recipe import PatchSimilaritySettings, SynthesisSettings
    from mimiq_runtime.manifest import Preprocessing

__all__ = ["synthesise_by_patch_similarity"]

ROUNDS = 2
"""The learning rate rises and falls twice; images are shifted twice as far in the second round."""

BETAS = (0.5, 0.9)
PUBLISHED_ELEMENTS = 32 * 3 * 224 * 224
"""Numbers in the batch that the published range of the total variation is meant for."""


def synthesise_by_patch_similarity(
    teacher: nn.Module,
    settings: SynthesisSettings,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_classes: int,
    generator: torch.Generator,
    device: torch.device,
    fit: FittingBatch | None = None,
    advance: Callable[[int, str], None],
) -> SynthesisedBatch:
    """Optimise a batch of images from noise until their patches differ as those of photographs.

    Args:
        teacher: Full-precision model with exposed attention and frozen parameters.
        settings: Iterations of both rounds together, and the section ``patch_similarity``.
        preprocessing: Size of the input and the range of real pixels.
        batch_size: How many images.
        num_classes: Labels are drawn from ``0 .. num_classes - 1``.
        generator: Source of all randomness, on the CPU.
        device: Where the teacher is.
        fit: How many images the memory was enough for before; None where nobody knows.
        advance: Called after every step with the number of steps and a note.

    Raises:
        InvalidInputError: The loss is no longer finite, the memory of the GPU is not enough for one
            image, or a compilation that the settings insist on fails.
    """
    chosen = settings.patch_similarity
    shape = (batch_size, *preprocessing.input_size)
    noise = torch.randn(shape, generator=generator).to(device)
    labels = torch.randint(0, num_classes, (batch_size,), generator=generator).to(device)
    round_length = math.ceil(settings.iterations / ROUNDS)
    method = Method(
        place="head_outputs",
        objective=_Objective(teacher, chosen),
        prior=_Smoothness(chosen, _variation_target(chosen, shape, generator)),
        augment=DiagonalRoll(
            preprocessing.input_size[1:],
            round_length,
            jitter=chosen.jitter,
            flip=chosen.flip,
            generator=generator,
        ),
        learning_rate=functools.partial(_learning_rate, chosen, round_length),
        optimizer=functools.partial(torch.optim.Adam, betas=BETAS, fused=device.type == "cuda"),
        shown="patch_entropy",
        learning_rate_key="synthesis.patch_similarity.learning_rate",
        extent=functools.partial(_extent, teacher),
    )
    return optimise_images(
        teacher,
        method,
        noise,
        labels,
        settings,
        PixelScale(preprocessing, device),
        fit=fit,
        advance=advance,
    )


def _variation_target(
    settings: PatchSimilaritySettings, shape: tuple[int, ...], generator: torch.Generator
) -> float:
    """What the total variation is drawn to, one number a batch.

    It is a norm over the whole batch: its size grows with the root of the number of elements.
    """
    low, high = settings.total_variation_low, settings.total_variation_high
    drawn = low + (high - low) * float(torch.rand((), generator=generator))
    return drawn * math.sqrt(math.prod(shape) / PUBLISHED_ELEMENTS)


def _learning_rate(settings: PatchSimilaritySettings, round_length: int, step: int) -> float:
    warm_up = round(settings.warmup * round_length)
    factor = warm_up_cosine_factor(step % round_length, round_length, warm_up)
    return settings.learning_rate * factor


class _Objective:
    """The two losses of one step that ask the teacher."""

    def __init__(self, teacher: nn.Module, settings: PatchSimilaritySettings) -> None:
        self._entropy_weight = settings.entropy_weight
        self._class_weight = settings.class_weight
        self._teacher = teacher

    def __call__(
        self, class_logits: Tensor, taps: list[Tensor], labels: Tensor, extent: Tensor | None
    ) -> dict[str, Tensor]:
        similarities = layer_patch_similarities(self._teacher, taps, len(class_logits))
        ends = [None] * len(similarities) if extent is None else extent.unbind()
        # The sum over layers, not their mean, as published.
        entropy = torch.stack(
            [patch_entropy(layer, end) for layer, end in zip(similarities, ends, strict=True)]
        ).sum()
        classes = F.cross_entropy(class_logits.float(), labels)
        return {
            "loss": -self._entropy_weight * entropy + self._class_weight * classes,
            "patch_entropy": entropy,
            "cross_entropy": classes,
        }


class _Smoothness:
    """The prior: the total variation of the augmented images comes near to a target."""

    def __init__(self, settings: PatchSimilaritySettings, target: float) -> None:
        self._weight = settings.total_variation_weight
        self._target = target

    def __call__(self, _images: Tensor, augmented: Tensor) -> dict[str, Tensor]:
        variation = total_variation(augmented, diagonal_weight=1.0)
        distance = (variation - self._target).abs()
        return {"loss": self._weight * distance, "total_variation": variation}


def _extent(teacher: nn.Module, taps: list[Tensor], count: int) -> Tensor:
    """Smallest and largest similarity of each layer, ``(layers, 2)``."""
    similarities = layer_patch_similarities(teacher, taps, count)
    return torch.stack([torch.stack(layer.aminmax()) for layer in similarities])
