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
from mimiq_calib.recipe import Start
from mimiq_calib.schedules import cosine_factor
from mimiq_calib.synthesis.augmentation import SynthesisAugmentation
from mimiq_calib.synthesis.dead_leaves import dead_leaves
from mimiq_calib.synthesis.head_similarity import inter_head_loss, mean_head_similarity
from mimiq_calib.synthesis.layer_similarity import layer_similarities
from mimiq_calib.synthesis.optimisation import Method, SynthesisedBatch, optimise_images
from mimiq_calib.synthesis.total_variation import total_variation

if TYPE_CHECKING:
    from collections.abc import Callable

    from mimiq_calib.fitting_batch import FittingBatch
    from mimiq_calib.recipe import SynthesisSettings
    from mimiq_runtime.manifest import Preprocessing

__all__ = ["SynthesisedBatch", "synthesise_batch"]

LARGEST_SEED = 2**31


def synthesise_batch(
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
    """Optimise a batch of images until the teacher's heads agree on them.

    Args:
        teacher: Full-precision model with exposed attention and frozen parameters.
        settings: Start, losses, schedule and augmentation.
        preprocessing: Size of the input and the range of real pixels.
        batch_size: How many images.
        num_classes: Labels are drawn from ``0 .. num_classes - 1``.
        generator: Source of all randomness, on the CPU.
        device: Where the teacher is.
        fit: How many images the memory was enough for before; None where nobody knows.
        advance: Called after every step, and after every dead leaf to start from with 0 of them,
            with the number of steps and a note.

    Raises:
        InvalidInputError: The loss is no longer finite, the memory of the GPU is not enough for one
            image, or a compilation that the settings insist on fails.
    """
    start = _start(settings.start, batch_size, preprocessing, generator, advance).to(device)
    labels = torch.randint(0, num_classes, (batch_size,), generator=generator).to(device)
    method = Method(
        place="logits",
        objective=_Objective(teacher, settings),
        prior=functools.partial(_smoothness, settings.total_variation_weight),
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
        start,
        labels,
        settings,
        PixelScale(preprocessing, device),
        fit=fit,
        advance=advance,
    )


def _start(
    start: Start,
    batch_size: int,
    preprocessing: Preprocessing,
    generator: torch.Generator,
    advance: Callable[[int, str], None],
) -> Tensor:
    if start is Start.NOISE:
        return torch.randn((batch_size, *preprocessing.input_size), generator=generator)
    seed = int(torch.randint(LARGEST_SEED, (), generator=generator))

    def tell(number: int) -> None:
        # No step of the synthesis yet, but work.
        advance(0, f"start {number + 1} of {batch_size}")

    pixels = dead_leaves(batch_size, preprocessing.input_size, seed=seed, on_picture=tell)
    pixel_scale = PixelScale(preprocessing, torch.device("cpu"))
    return pixel_scale.normalise(pixel_scale.to_unit(pixels))


def _learning_rate(settings: SynthesisSettings, step: int) -> float:
    floor = settings.final_learning_rate / settings.learning_rate
    return settings.learning_rate * cosine_factor(step, settings.iterations, floor)


class _Objective:
    """The two losses of one step that ask the teacher."""

    def __init__(self, teacher: nn.Module, settings: SynthesisSettings) -> None:
        self._head_similarity_weight = settings.head_similarity_weight
        self._class_weight = settings.class_weight
        self._teacher = teacher

    def __call__(
        self, class_logits: Tensor, taps: list[Tensor], labels: Tensor, extent: Tensor | None
    ) -> dict[str, Tensor]:
        similarities = layer_similarities(self._teacher, taps)
        heads = torch.stack([inter_head_loss(layer) for layer in similarities]).mean()
        classes = F.cross_entropy(class_logits.float(), labels)
        loss = self._head_similarity_weight * heads + self._class_weight * classes
        with torch.no_grad():
            reported = torch.stack([mean_head_similarity(layer) for layer in similarities]).mean()
        return {
            "loss": loss,
            "inter_head": heads,
            "cross_entropy": classes,
            "head_similarity": reported,
        }


def _smoothness(weight: float, images: Tensor, _augmented: Tensor) -> dict[str, Tensor]:
    """The prior is on the images themselves, not on what became of them for the teacher."""
    variation = total_variation(images)
    return {"loss": weight * variation, "total_variation": variation}
