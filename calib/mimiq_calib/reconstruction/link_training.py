"""The training of one link of the chain, from cached inputs to cached targets."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mimiq_calib.conversion.convert import quantizers_of
from mimiq_calib.precision import autocast, resolve_precision
from mimiq_calib.randomness import piece_generator, piece_seed
from mimiq_calib.schedules import cosine_factor
from mimiq_runtime.errors import DivergedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mimiq_calib.processes import Processes
    from mimiq_calib.recipe import ReconstructionSettings
    from mimiq_calib.reconstruction.chain import Link

__all__ = ["LinkMetrics", "LinkTraining"]

STAGE = "reconstruction"


@dataclass(frozen=True)
class LinkMetrics:
    """What the training of one link did, over all views.

    Attributes:
        link: Name of the block; ``stem`` and ``tail`` for the ends.
        error_before: Weighted squared error of its output as a share of the output's square; the
            error itself where that is zero.
        error_after: The same after its training.
    """

    link: str
    error_before: float
    error_after: float


class LinkTraining:
    """Trains one link; every random choice depends on the seed and the link's number only.

    Args:
        link: The student's link, scales in the logarithm.
        settings: Batches, rates and mixing.
        targets: What the teacher's link gives, for all views.
        weight: How much each value of the output counts; broadcasts against a batch.
        seed: Seed of the run.
        number: The link's place in the chain.
        processes: Those that share each batch, each with the same arguments.
    """

    def __init__(
        self,
        link: Link,
        settings: ReconstructionSettings,
        targets: Tensor,
        weight: Tensor,
        *,
        seed: int,
        number: int,
        processes: Processes,
    ) -> None:
        self._link = link
        self._settings = settings
        self._targets = targets
        self._weight = weight
        # Batch by batch: all views together may be most of the memory already.
        energies = [
            float((batch.square() * weight).mean()) * len(batch)
            for batch in torch.split(targets, settings.batch_size)
        ]
        energy = sum(energies) / len(targets)
        # Where the teacher gives nothing but zeros, or squares beyond single precision, there is
        # no share of it; then the error is that of the output itself.
        self._energy = energy if 0 < energy < math.inf else 1.0
        self._seed = seed
        self._number = number
        self._processes = processes
        self._precision = resolve_precision(settings.precision, targets.device)

    def run(
        self, quantized: Tensor, exact: Tensor, advance: Callable[[int, str], None]
    ) -> tuple[Tensor, LinkMetrics]:
        """Train the link on what the quantized links before it give, mixed with the teacher's.

        Args:
            quantized: What the student's links before give, for all views.
            exact: What the teacher's give.
            advance: Called with the number of steps done and a note.

        Returns:
            The link's outputs for all views after its training, and what the training did.

        Raises:
            DivergedError: The loss is no longer finite.
            LostProcessError: Another process has ended.
        """
        link = self._link
        untrained = copy.deepcopy(link.state_dict())
        outputs_before, before = self._outputs(quantized)
        self._train(quantized, exact, advance)
        outputs, after = self._outputs(quantized)
        if self._all_keep(better=after <= before):
            return outputs, LinkMetrics(link.name, before, after)
        # What made a link worse is not kept: the links behind it would have to live with it.
        link.load_state_dict(untrained)
        return outputs_before, LinkMetrics(link.name, before, before)

    def _train(self, quantized: Tensor, exact: Tensor, advance: Callable[[int, str], None]) -> None:
        settings, link = self._settings, self._link
        optimizer = self._optimizer()
        rates = [group["lr"] for group in optimizer.param_groups]
        batches = _Batches(len(quantized), settings.batch_size, self._seed, self._number)
        for step in range(settings.iterations):
            factor = cosine_factor(step, settings.iterations, settings.final_learning_rate_ratio)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            chosen = batches.next().to(quantized.device)
            inputs = self._mixed(quantized[chosen], exact[chosen], step)
            optimizer.zero_grad()
            loss = self._accumulate(inputs, self._targets[chosen])
            if not math.isfinite(loss):
                raise DivergedError(
                    f"The reconstruction of {link.name} diverged: its loss is {loss}; the state "
                    "before that block is kept in checkpoints/reconstruction.safetensors of the "
                    "run. Lower reconstruction.learning_rate, and calibrate into another directory."
                )
            optimizer.step()
            advance(1, f"{link.name}, error {loss:.4f}")
        link.requires_grad_(False)

    def _accumulate(self, inputs: Tensor, targets: Tensor) -> float:
        """Leave the gradients of a batch in the parameters, and return its error.

        Each process computes those of its own views, and they are added up
        (docs/decisions/0021-gradients-are-summed.md).
        """
        rank, count = self._processes.rank, self._processes.count
        own = slice(rank, None, count)
        share = len(inputs[own]) / len(inputs)
        if share == 0:  # fewer views than processes: one that does not count
            own = slice(0, 1)
        with autocast(self._precision, inputs.device):
            outputs = self._link(inputs[own])
        loss = self._error(outputs, targets[own]) * share
        torch.autograd.backward(loss)
        error = loss.detach()
        gradients = [p.grad for p in self._link.parameters() if p.grad is not None]
        self._processes.sum_([*gradients, error])
        return float(error)

    def _all_keep(self, *, better: bool) -> bool:
        """What the first process finds: on other hardware a rounding may tell another one."""
        found = torch.tensor(float(better and self._processes.first), device=self._targets.device)
        self._processes.sum_([found])
        return bool(found)

    def _optimizer(self) -> torch.optim.Optimizer:
        # A scale that still has this name is recomputed from its weight, not learned.
        learned = [p for name, p in self._link.named_parameters() if not name.endswith(".scale")]
        for parameter in learned:
            parameter.requires_grad_(True)
        scales = self._scales_by_codes()
        of_scales = {id(p) for parameters in scales.values() for p in parameters}
        weights = [p for p in learned if id(p) not in of_scales]
        groups = [{"params": weights, "lr": self._settings.learning_rate}]
        for codes, parameters in scales.items():
            groups.append({"params": parameters, "lr": self._settings.scale_rate_at(codes)})
        return torch.optim.Adam(groups)

    def _scales_by_codes(self) -> dict[int, list[nn.Parameter]]:
        """The logarithms of the link's learned scales, by how many codes their grids have."""
        found: dict[int, list[nn.Parameter]] = {}
        for quantizer in quantizers_of(self._link):
            if not quantizer.recomputed:
                logarithm = quantizer.get_parameter("parametrizations.scale.original")
                codes = quantizer.grid.qmax - quantizer.grid.qmin + 1
                found.setdefault(codes, []).append(logarithm)
        return found

    def _mixed(self, quantized: Tensor, exact: Tensor, step: int) -> Tensor:
        share = self._settings.exact_input_share
        # The stem's inputs are the images themselves.
        if share == 0 or self._number == 0:
            return quantized
        seed = piece_seed(self._seed, f"{STAGE} mixing {self._number}", step)
        generator = torch.Generator(quantized.device).manual_seed(seed)
        draws = torch.rand(quantized.shape, generator=generator, device=quantized.device)
        return torch.where(draws < share, exact, quantized)

    def _error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs.float() - targets).square() * self._weight).mean() / self._energy

    @torch.no_grad()
    def _outputs(self, inputs: Tensor) -> tuple[Tensor, float]:
        """Outputs of all views, in single precision, and their error."""
        outputs, total = [], 0.0
        size = self._settings.batch_size
        batches = zip(torch.split(inputs, size), torch.split(self._targets, size), strict=True)
        for x, target in batches:
            outputs.append(self._link(x))
            total += float(self._error(outputs[-1], target)) * len(x)
        return torch.cat(outputs), total / len(inputs)


class _Batches:
    """Numbers of views, each as often as any other."""

    def __init__(self, count: int, batch_size: int, seed: int, number: int) -> None:
        self._count, self._batch_size = count, batch_size
        self._generator = piece_generator(seed, STAGE, number)
        self._left = torch.empty(0, dtype=torch.int64)

    def next(self) -> Tensor:
        """One batch; the last of a pass over the views may be smaller."""
        if not len(self._left):
            self._left = torch.randperm(self._count, generator=self._generator)
        batch, self._left = self._left[: self._batch_size], self._left[self._batch_size :]
        return batch
