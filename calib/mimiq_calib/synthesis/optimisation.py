"""The loop that makes images step by step: the same for every method that looks at the teacher.

A method says what is minimised, how images are changed before the teacher sees them, and how the
learning rate runs (:class:`Method`); MimiQ and PSAQ-ViT are two.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from mimiq_calib.fitting_batch import FittingBatch
from mimiq_calib.precision import autocast, resolve_precision
from mimiq_calib.synthesis.compilation import (
    CompiledWithFallback,
    compiled_teacher,
    wants_compilation,
)
from mimiq_calib.taps import attention_taps
from mimiq_runtime.errors import DivergedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mimiq_calib.pixels import PixelScale
    from mimiq_calib.recipe import SynthesisSettings
    from mimiq_calib.taps import Place

    Step = Callable[[Tensor, Tensor, int], dict[str, Tensor]]
    """From images, augmented images and how many the teacher sees at a time to losses."""
    TeacherPass = Callable[[Tensor], tuple[Tensor, list[Tensor]]]

__all__ = ["MEMORY_KEY", "Method", "Objective", "Prior", "SynthesisedBatch", "optimise_images"]

MEMORY_KEY = "synthesis.batch_size"
"""What decides how much memory is needed."""


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
    """What is minimised of what the teacher sees; a pure function, so that it can be compiled.

    Each loss is the mean of what the images give one by one, so that the images may be given in
    parts: then the means are added up by the number of images.
    """

    def __call__(
        self, class_logits: Tensor, taps: list[Tensor], labels: Tensor, extent: Tensor | None
    ) -> dict[str, Tensor]:
        """Losses of one step, all of them scalars.

        Args:
            class_logits: ``(images, classes)`` of the teacher for the augmented images.
            taps: One tensor a layer, as :func:`mimiq_calib.taps.attention_taps` records them.
            labels: The class of each image, int64, ``(images,)``.
            extent: What :attr:`Method.extent` found in all images of the step; None where these
                are all.

        Returns:
            ``loss``, which is minimised, and what else is worth a line in the metrics.
        """


class Prior(Protocol):
    """What is minimised of the images themselves, always of all together."""

    def __call__(self, images: Tensor, augmented: Tensor, /) -> dict[str, Tensor]:
        """Losses of one step as of :class:`Objective`.

        Args:
            images: What is optimised, ``(batch, channels, height, width)``, normalised.
            augmented: What the teacher sees.
        """


@dataclass(frozen=True)
class Method:
    """What one method of synthesis does differently from another.

    Attributes:
        place: Which tensor of each attention its losses read.
        objective: What is minimised of what the teacher sees.
        prior: What is minimised of the images.
        augment: Changes normalised images for a step, given by its number.
        learning_rate: Of a step, given by its number.
        optimizer: Made from the images; its learning rate is set before every step.
        shown: Name of the loss beside the progress bar.
        learning_rate_key: Of the recipe, for the message when the losses diverge.
        extent: Where the objective looks at all images at once: the smallest and the largest of
            what it reads in each layer, ``(layers, 2)``, from the taps and the number of images.
    """

    place: Place
    objective: Objective
    prior: Prior
    augment: Callable[[Tensor, int], Tensor]
    learning_rate: Callable[[int], float]
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    shown: str
    learning_rate_key: str
    extent: Callable[[list[Tensor], int], Tensor] | None = None


def optimise_images(
    teacher: nn.Module,
    method: Method,
    start: Tensor,
    labels: Tensor,
    settings: SynthesisSettings,
    pixel_scale: PixelScale,
    *,
    fit: FittingBatch | None = None,
    advance: Callable[[int, str], None],
) -> SynthesisedBatch:
    """Optimise a batch of images by a method.

    Where the memory of a GPU is not enough, the teacher sees the images in parts, and their
    gradients are put together: the images stay the same but for rounding.

    Args:
        teacher: Full-precision model with exposed attention and frozen parameters.
        method: What is minimised, and how.
        start: What they begin from, ``(batch, channels, height, width)``, normalised, on the
            device.
        labels: The class of each image, int64, ``(batch,)``.
        settings: Iterations, precision and compilation.
        pixel_scale: The range of real pixels, on the device.
        fit: How many images the memory was enough for before; None where nobody knows.
        advance: Called after every step with the number of steps and a note.

    Raises:
        InvalidInputError: The loss is no longer finite, the memory of the GPU is not enough for one
            image, or a compilation that the settings insist on fails.
    """
    images = start.requires_grad_()
    fit = fit or FittingBatch(MEMORY_KEY)
    optimizer = method.optimizer([images])
    metrics = []
    report_every = max(1, settings.iterations // 10)
    with _reproducible_kernels():
        backward = _step_of(teacher, method, settings, labels)
        for step in range(settings.iterations):
            for group in optimizer.param_groups:
                group["lr"] = method.learning_rate(step)
            augmented = method.augment(images, step)
            losses = fit.run(len(images), functools.partial(backward, images, augmented))
            optimizer.step()
            with torch.no_grad():
                pixel_scale.clamp_(images)
            if step % report_every == 0 or step == settings.iterations - 1:
                metrics.append({"step": step, **_finite(losses, step, method.learning_rate_key)})
            advance(1, f"{method.shown.replace('_', ' ')} {metrics[-1][method.shown]:.3f}")
    # A pixel of NaN would become a black one, and nobody would know.
    if not torch.isfinite(images).all():
        raise _diverged("its images hold NaN", settings.iterations - 1, method.learning_rate_key)
    return SynthesisedBatch(pixel_scale.to_pixels(images.detach()).cpu(), labels.cpu(), metrics)


def _step_of(
    teacher: nn.Module, method: Method, settings: SynthesisSettings, labels: Tensor
) -> Step:
    """A function that computes the losses of a step and leaves their gradient in the images."""
    device = labels.device
    context = autocast(resolve_precision(settings.precision, device), device)

    def eager_teacher(augmented: Tensor) -> tuple[Tensor, list[Tensor]]:
        with attention_taps(teacher, method.place) as taps:
            return teacher(augmented), list(taps)

    def step_with(teacher_pass: TeacherPass, objective: Objective) -> Step:
        def step(images: Tensor, augmented: Tensor, part: int) -> dict[str, Tensor]:
            inputs = torch.split(augmented.detach(), part)
            seen = list(zip(inputs, torch.split(labels, part), strict=True))
            extent = None
            if method.extent is not None and len(seen) > 1:
                with torch.no_grad(), context:
                    extent = _joined([method.extent(teacher_pass(x)[1], len(x)) for x, _ in seen])
            gradients, losses = [], dict[str, Tensor]()
            for x, classes in seen:
                x.requires_grad_()
                with context:
                    class_logits, taps = teacher_pass(x)
                found = objective(class_logits, taps, classes, extent)
                share = len(x) / len(augmented)
                torch.autograd.backward(found["loss"] * share)
                assert x.grad is not None  # the logits are those of x
                gradients.append(x.grad)
                for name, value in found.items():
                    losses[name] = losses.get(name, 0.0) + value.detach() * share
            prior = method.prior(images, augmented)
            images.grad = None
            torch.autograd.backward([prior["loss"], augmented], [None, torch.cat(gradients)])
            loss = losses["loss"] + prior["loss"].detach()
            rest = {name: value.detach() for name, value in prior.items()}
            return {**losses, **rest, "loss": loss}

        return step

    eager = step_with(eager_teacher, method.objective)
    if not wants_compilation(settings.compile, device):
        return eager
    compiled = step_with(
        compiled_teacher(teacher, method.place),
        torch.compile(method.objective, dynamic=False),
    )
    return CompiledWithFallback(compiled, eager, insist=settings.compile is True)


def _joined(extents: list[Tensor]) -> Tensor:
    """The extent of all images from those of the parts, ``(layers, 2)`` each."""
    low, high = torch.stack(extents).unbind(dim=-1)
    return torch.stack([low.amin(dim=0), high.amax(dim=0)], dim=-1)


@contextlib.contextmanager
def _reproducible_kernels() -> Iterator[None]:
    """The same images for the same seed: cuDNN may choose among kernels that add in any order."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


def _finite(losses: dict[str, Tensor], step: int, learning_rate_key: str) -> dict[str, float]:
    values = {name: float(value) for name, value in losses.items()}
    if not all(abs(value) < float("inf") for value in values.values()):
        raise _diverged(f"its losses are {values}", step, learning_rate_key)
    return values


def _diverged(sign: str, step: int, learning_rate_key: str) -> DivergedError:
    return DivergedError(
        f"The synthesis of images diverged at step {step}: {sign}; lower {learning_rate_key} or "
        "set synthesis.precision to fp32."
    )
