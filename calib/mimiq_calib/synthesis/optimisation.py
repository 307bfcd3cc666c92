"""The loop that turns noise into images: the same for every method that looks at the teacher.

A method says what is minimised, how images are changed before the teacher sees them, and how the
learning rate runs (:class:`Method`); MimiQ and PSAQ-ViT are two.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from mimiq_calib.precision import autocast, resolve_precision
from mimiq_calib.synthesis.compilation import (
    CompiledWithFallback,
    compiled_teacher,
    wants_compilation,
)
from mimiq_calib.taps import attention_taps
from mimiq_runtime.errors import DivergedError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mimiq_calib.pixels import PixelScale
    from mimiq_calib.recipe import SynthesisSettings
    from mimiq_calib.taps import Place

    Step = Callable[[Tensor, Tensor], dict[str, Tensor]]
    """From images and augmented images to losses."""

__all__ = ["Method", "Objective", "SynthesisedBatch", "optimise_images"]


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


class Objective(Protocol):
    """What is minimised; a pure function of these tensors, so that it can be compiled."""

    def __call__(
        self, class_logits: Tensor, taps: list[Tensor], images: Tensor, augmented: Tensor
    ) -> dict[str, Tensor]:
        """Losses of one step, all of them scalars.

        Args:
            class_logits: ``(batch, classes)`` of the teacher for ``augmented``.
            taps: One tensor a layer, as :func:`mimiq_calib.taps.attention_taps` records them.
            images: What is optimised, ``(batch, channels, height, width)``, normalised.
            augmented: What the teacher saw.

        Returns:
            ``loss``, which is minimised, and what else is worth a line in the metrics.
        """


@dataclass(frozen=True)
class Method:
    """What one method of synthesis does differently from another.

    Attributes:
        place: Which tensor of each attention its losses read.
        objective: What is minimised.
        augment: Changes normalised images for a step, given by its number.
        learning_rate: Of a step, given by its number.
        optimizer: Made from the images; its learning rate is set before every step.
        shown: Name of the loss beside the progress bar.
        learning_rate_key: Of the recipe, for the message when the losses diverge.
    """

    place: Place
    objective: Objective
    augment: Callable[[Tensor, int], Tensor]
    learning_rate: Callable[[int], float]
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    shown: str
    learning_rate_key: str


def optimise_images(
    teacher: nn.Module,
    method: Method,
    noise: Tensor,
    labels: Tensor,
    settings: SynthesisSettings,
    pixel_scale: PixelScale,
    *,
    advance: Callable[[int, str], None],
) -> SynthesisedBatch:
    """Optimise a batch of images, from noise, by a method.

    Args:
        teacher: Full-precision model with exposed attention and frozen parameters.
        method: What is minimised, and how.
        noise: The start, ``(batch, channels, height, width)``, normalised, on the device.
        labels: The class of each image, int64, ``(batch,)``.
        settings: Iterations, precision and compilation.
        pixel_scale: The range of real pixels, on the device.
        advance: Called after every step with the number of steps and a note.

    Raises:
        InvalidInputError: The loss is no longer finite, the memory of the GPU is not enough, or
            a compilation that the settings insist on fails.
    """
    images = noise.requires_grad_()
    optimizer = method.optimizer([images])
    metrics = []
    report_every = max(1, settings.iterations // 10)
    with _reproducible_kernels(), _enough_memory(len(images)):
        backward = _step_of(teacher, method, settings, images.device)
        for step in range(settings.iterations):
            for group in optimizer.param_groups:
                group["lr"] = method.learning_rate(step)
            losses = backward(images, method.augment(images, step))
            optimizer.step()
            with torch.no_grad():
                pixel_scale.clamp_(images)
            if step % report_every == 0 or step == settings.iterations - 1:
                metrics.append({"step": step, **_finite(losses, step, method.learning_rate_key)})
            advance(1, f"{method.shown.replace('_', ' ')} {metrics[-1][method.shown]:.3f}")
    return SynthesisedBatch(pixel_scale.to_pixels(images.detach()).cpu(), labels.cpu(), metrics)


def _step_of(
    teacher: nn.Module, method: Method, settings: SynthesisSettings, device: torch.device
) -> Step:
    """A function that computes the losses of a step and leaves their gradient in the images."""
    context = autocast(resolve_precision(settings.precision, device), device)

    def eager_teacher(augmented: Tensor) -> tuple[Tensor, list[Tensor]]:
        with attention_taps(teacher, method.place) as taps:
            return teacher(augmented), list(taps)

    def step_with(
        teacher_pass: Callable[[Tensor], tuple[Tensor, list[Tensor]]], objective: Objective
    ) -> Step:
        def step(images: Tensor, augmented: Tensor) -> dict[str, Tensor]:
            images.grad = None
            with context:
                class_logits, taps = teacher_pass(augmented)
            losses = objective(class_logits, taps, images, augmented)
            torch.autograd.backward(losses["loss"])
            return {name: value.detach() for name, value in losses.items()}

        return step

    eager = step_with(eager_teacher, method.objective)
    if not wants_compilation(settings.compile, device):
        return eager
    compiled = step_with(
        compiled_teacher(teacher, method.place),
        torch.compile(method.objective, dynamic=False),
    )
    return CompiledWithFallback(compiled, eager, insist=settings.compile is True)


@contextlib.contextmanager
def _reproducible_kernels() -> Iterator[None]:
    """The same images for the same seed: cuDNN may choose among kernels that add in any order."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


@contextlib.contextmanager
def _enough_memory(batch_size: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InvalidInputError(
            f"The memory of the GPU is not enough to make {batch_size} images at a time; lower "
            "synthesis.batch_size (another size gives other images)."
        ) from error


def _finite(losses: dict[str, Tensor], step: int, learning_rate_key: str) -> dict[str, float]:
    values = {name: float(value) for name, value in losses.items()}
    if not all(abs(value) < float("inf") for value in values.values()):
        raise DivergedError(
            f"The synthesis of images diverged at step {step}: its losses are {values}; lower "
            f"{learning_rate_key} or set synthesis.precision to fp32."
        )
    return values
