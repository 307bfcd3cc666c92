"""The training loop of the quantized model: one readable program, resumable by epoch.

Several processes share each batch and add up their gradients, so that every one of them makes the
step that one process alone would make (docs/decisions/0021-gradients-are-summed.md).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mimiq_calib.batch_gradients import (
    accumulate_gradients,
    own_share,
    sum_over_processes,
)
from mimiq_calib.distillation.augmentation import augment_images, make_augmentation
from mimiq_calib.distillation.checkpoint import load_checkpoint, save_checkpoint
from mimiq_calib.distillation.losses import logit_distillation_loss, structural_attention_loss
from mimiq_calib.distillation.parametrization import (
    learn_scales_in_logarithm,
    step_as_scales_would_,
)
from mimiq_calib.fitting_batch import FittingBatch
from mimiq_calib.pixels import PixelScale
from mimiq_calib.precision import autocast, resolve_precision
from mimiq_calib.processes import Processes
from mimiq_calib.randomness import piece_generator, piece_seed
from mimiq_calib.schedules import cosine_factor
from mimiq_calib.taps import attention_taps
from mimiq_runtime.errors import DivergedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mimiq_calib.recipe import DistillationSettings
    from mimiq_runtime.manifest import Preprocessing

__all__ = ["EpochMetrics", "distill", "steps_of_distillation"]

STAGE = "distillation"
ALONE = Processes()


@dataclass(frozen=True)
class EpochMetrics:
    """Mean losses of one epoch.

    Attributes:
        epoch: Its number, from 0.
        loss: The weighted sum that was minimised.
        logit: Kullback-Leibler loss, nats times squared temperature.
        structure: Head-wise structural attention loss, 0 to 2.
        agreement: Share of the augmented images with the same top-1 as the teacher.
    """

    epoch: int
    loss: float
    logit: float
    structure: float
    agreement: float


def steps_of_distillation(settings: DistillationSettings, num_images: int) -> int:
    """Number of optimisation steps in all."""
    return settings.epochs * math.ceil(num_images / settings.batch_size)


def distill(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    settings: DistillationSettings,
    preprocessing: Preprocessing,
    *,
    seed: int,
    checkpoint: Path,
    processes: Processes = ALONE,
    on_epoch: Callable[[EpochMetrics], None],
    advance: Callable[[int, str], None],
) -> None:
    """Train the student on the teacher; the last epoch is the result.

    Before the first and after every epoch the whole state is written to ``checkpoint``: weights,
    scales, grids and optimiser. If that file is there at the start, the training goes on from it
    to the same result, whatever the student's quantizers were.

    Where the memory of a GPU is not enough for a batch, it is taken in parts whose gradients are
    added up: the step stays that of the whole batch but for rounding.

    Args:
        student: Model with quantizers, in inference mode as it stays; trained in place. They must
            be calibrated in the first process, unless there is a checkpoint.
        teacher: The full-precision model with frozen parameters.
        images: uint8 pixels, ``(count, channels, height, width)``.
        settings: Losses, optimiser and schedule.
        preprocessing: Size of the input and the scale of its pixels.
        seed: Seed of the run.
        checkpoint: File for the state between two epochs; the first process writes it, all read.
        processes: Those that share the work, each with the same arguments.
        on_epoch: Called with the losses of each finished epoch, in the first process.
        advance: Called with the number of steps done and a note.

    Raises:
        InvalidInputError: The memory of the GPU is not enough for one image.
        DivergedError: A loss or a weight is no longer finite; the state after the last good epoch
            is in ``checkpoint``.
        RunDirectoryError: ``checkpoint`` is not of this training.
        LostProcessError: Another process has ended.
    """
    device = next(student.parameters()).device
    weights = [p for name, p in student.named_parameters() if not name.endswith(".scale")]
    student.requires_grad_(True)
    step_losses = _StepLosses(student, teacher, settings, device)
    with learn_scales_in_logarithm(student) as logarithms:
        optimizer = _make_optimizer(settings, weights, logarithms)
        first_epoch = _start(student, optimizer, checkpoint, processes)
        batches = math.ceil(len(images) / settings.batch_size)
        advance(first_epoch * batches, "")
        pixels = _EpochImages(images, settings, preprocessing, seed, device, processes)
        fit = FittingBatch("distillation.batch_size")
        for epoch in range(first_epoch, settings.epochs):
            sums = torch.zeros(4, dtype=torch.float64)
            for number, (batch, share, size) in enumerate(pixels.of_epoch(epoch)):
                _set_learning_rates(optimizer, settings, epoch, epoch * batches + number, batches)
                compute = functools.partial(
                    accumulate_gradients, optimizer, step_losses, [batch], share
                )
                parts = fit.run(len(batch), compute)
                sum_over_processes(processes, optimizer, parts)
                _refuse_divergence(float(parts[0]), epoch)
                if settings.gradient_clip is not None:
                    nn.utils.clip_grad_norm_([*weights, *logarithms], settings.gradient_clip)
                if settings.optimizer == "sgd":
                    step_as_scales_would_(logarithms)
                optimizer.step()
                sums += parts.cpu() * size
                advance(1, f"epoch {epoch + 1}, loss {float(parts[0]):.3f}")
            # The last step of an epoch has no loss behind it that would tell.
            finite = all(torch.isfinite(p).all() for p in (*weights, *logarithms))
            _refuse_divergence(float(sums[0]) if finite else math.nan, epoch)
            if processes.first:
                # Its metrics first: an interruption between the two repeats the epoch, and loses
                # none.
                on_epoch(_mean_metrics(epoch, sums / len(images)))
                save_checkpoint(checkpoint, student, optimizer, next_epoch=epoch + 1)
    student.requires_grad_(False)


def _start(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    checkpoint: Path,
    processes: Processes,
) -> int:
    """Give every process the same state, through the checkpoint; return the epoch to begin with.

    What the first process chose as grids and first scales is thereby written down before it is
    trained, and a resumed run does not choose again.
    """
    if processes.first and not checkpoint.exists():
        save_checkpoint(checkpoint, student, optimizer, next_epoch=0)
    processes.wait()
    return load_checkpoint(checkpoint, student, optimizer)


class _EpochImages:
    """This process's part of each epoch: shuffled, normalised, changed at random, in batches."""

    def __init__(
        self,
        images: Tensor,
        settings: DistillationSettings,
        preprocessing: Preprocessing,
        seed: int,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        self._images = images
        self._processes = processes
        self._batch_size = settings.batch_size
        self._augmentation = make_augmentation(settings.augmentation, preprocessing.input_size)
        self._pixel_scale = PixelScale(preprocessing, device)
        self._seed = seed
        self._device = device

    def of_epoch(self, epoch: int) -> Iterator[tuple[Tensor, float, int]]:
        """Batches of one epoch; the same for the same seed, whatever ran before.

        Yields:
            This process's images of a batch, their share of it, and the size of the whole batch.
        """
        generator = piece_generator(self._seed, STAGE, epoch)
        order = torch.randperm(len(self._images), generator=generator)
        positions = torch.arange(len(order))
        for batch in torch.split(positions, self._batch_size):
            places, share = own_share(self._processes, len(batch))
            own = batch[places]
            seeds = [
                piece_seed(self._seed, f"augmentation {epoch}", place) for place in own.tolist()
            ]
            # On a GPU they are changed there: a processor would take longer than the training.
            unit = self._pixel_scale.to_unit(self._images[order[own]].to(self._device))
            changed = augment_images(unit, self._augmentation, seeds)
            yield self._pixel_scale.normalise(changed), share, len(batch)


class _StepLosses:
    """The losses of one step, for student and teacher on the same images."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        settings: DistillationSettings,
        device: torch.device,
    ) -> None:
        self._student = student
        self._teacher = teacher
        self._settings = settings
        self._prefix = int(getattr(teacher, "num_prefix_tokens", 0))
        self._precision = resolve_precision(settings.precision, device)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        settings = self._settings
        with (
            attention_taps(self._teacher, "head_outputs") as teacher_taps,
            torch.no_grad(),
            autocast(self._precision, images.device),
        ):
            teacher_logits = self._teacher(images)
            teacher_heads = list(teacher_taps)
        with (
            attention_taps(self._student, "head_outputs") as student_taps,
            autocast(self._precision, images.device),
        ):
            student_logits = self._student(images)
            student_heads = list(student_taps)
        logit = logit_distillation_loss(
            student_logits, teacher_logits, temperature=settings.temperature
        )
        structure = structural_attention_loss(
            student_heads, teacher_heads, prefix_tokens=self._prefix
        )
        loss = settings.logit_weight * logit + settings.structure_weight * structure
        agreement = (student_logits.argmax(-1) == teacher_logits.argmax(-1)).float().mean()
        return loss, torch.stack([loss.detach(), logit.detach(), structure.detach(), agreement])


def _refuse_divergence(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"The distillation diverged in epoch {epoch + 1}: its loss is {loss}; the state before "
            "that epoch is kept in checkpoints/distillation.safetensors of the run. Lower "
            "distillation.learning_rate, and calibrate into another directory."
        )


def _make_optimizer(
    settings: DistillationSettings, weights: list[nn.Parameter], logarithms: list[nn.Parameter]
) -> torch.optim.Optimizer:
    # Decay would pull a scale's logarithm towards a scale of one.
    groups = [
        {"params": weights, "weight_decay": settings.weight_decay},
        {"params": logarithms, "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _set_learning_rates(
    optimizer: torch.optim.Optimizer,
    settings: DistillationSettings,
    epoch: int,
    step: int,
    batches: int,
) -> None:
    factor = cosine_factor(step, settings.epochs * batches, settings.final_learning_rate_ratio)
    weights, scales = optimizer.param_groups
    frozen = epoch < settings.warmup_epochs
    weights["lr"] = 0.0 if frozen else settings.learning_rate * factor
    scales["lr"] = settings.scale_learning_rate * factor


def _mean_metrics(epoch: int, means: Tensor) -> EpochMetrics:
    loss, logit, structure, agreement = means.tolist()
    return EpochMetrics(epoch, loss, logit, structure, agreement)
