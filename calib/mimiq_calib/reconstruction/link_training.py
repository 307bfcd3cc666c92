"""The training of one link of the chain, from cached inputs to cached targets."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mimiq_calib.batch_gradients import accumulate_gradients, own_share, sum_over_processes
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
    from mimiq_calib.reconstruction.view_memory import ViewMemory, ViewValues

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
        memory: Where the values of all views are, and how many of them fit at a time.
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
        memory: ViewMemory,
        targets: ViewValues,
        weight: Tensor,
        *,
        seed: int,
        number: int,
        processes: Processes,
    ) -> None:
        self._link = link
        self._settings = settings
        self._memory = memory
        self._targets = targets
        self._weight = weight
        energy = self._mean(lambda views: (targets[views].square() * weight).mean())
        # Where the teacher gives nothing but zeros, or squares beyond single precision, there is
        # no share of it; then the error is that of the output itself.
        self._energy = energy if 0 < energy < math.inf else 1.0
        self._seed = seed
        self._number = number
        self._processes = processes
        self._precision = resolve_precision(settings.precision, memory.device)

    def run(
        self, quantized: ViewValues, exact: ViewValues, advance: Callable[[int, str], None]
    ) -> tuple[ViewValues, LinkMetrics]:
        """Train the link on what the quantized links before it give, mixed with the teacher's.

        Args:
            quantized: What the student's links before give, for all views.
            exact: What the teacher's give.
            advance: Called with the number of steps done and a note.

        Returns:
            The link's outputs for all views after its training, and what the training did.

        Raises:
            DivergedError: The loss is no longer finite.
            InvalidInputError: The memory of the GPU is not enough for one view.
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

    def _train(
        self, quantized: ViewValues, exact: ViewValues, advance: Callable[[int, str], None]
    ) -> None:
        settings, link = self._settings, self._link
        optimizer = self._optimizer()
        rates = [group["lr"] for group in optimizer.param_groups]
        batches = _Batches(len(quantized), settings.batch_size, self._seed, self._number)
        for step in range(settings.iterations):
            factor = cosine_factor(step, settings.iterations, settings.final_learning_rate_ratio)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            loss = self._gradients(optimizer, quantized, exact, batches.next(), step)
            if not math.isfinite(loss):
                raise DivergedError(
                    f"The reconstruction of {link.name} diverged: its loss is {loss}; the state "
                    "before that block is kept in checkpoints/reconstruction.safetensors of the "
                    "run. Lower reconstruction.learning_rate, and calibrate into another directory."
                )
            optimizer.step()
            advance(1, f"{link.name}, error {loss:.4f}")
        link.requires_grad_(False)

    def _gradients(
        self,
        optimizer: torch.optim.Optimizer,
        quantized: ViewValues,
        exact: ViewValues,
        chosen: Tensor,
        step: int,
    ) -> float:
        """Leave the gradients of a batch in the parameters, and return its error.

        Each process computes those of its own views, as many at a time as fit.
        """
        own, share = own_share(self._processes, len(chosen))

        def compute(size: int) -> Tensor:
            # Mixed as a whole: what is drawn depends neither on the size nor on the process.
            inputs = self._mixed(quantized[chosen], exact[chosen], step)[own]
            batch = [inputs, self._targets[chosen[own]]]
            return accumulate_gradients(optimizer, self._losses, batch, share, size)

        error = self._memory.with_gradients.run(len(chosen[own]), compute)
        sum_over_processes(self._processes, optimizer, error)
        return float(error)

    def _losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(self._precision, inputs.device):
            outputs = self._link(inputs)
        error = self._error(outputs, targets)
        return error, error

    def _all_keep(self, *, better: bool) -> bool:
        """What the first process finds: on other hardware a rounding may tell another one."""
        found = torch.tensor(float(better and self._processes.first), device=self._memory.device)
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

    def _outputs(self, inputs: ViewValues) -> tuple[ViewValues, float]:
        """Outputs of all views, in single precision, and their error."""
        outputs = self._memory.outputs(self._link, inputs, self._settings.batch_size)
        targets = self._targets
        return outputs, self._mean(lambda views: self._error(outputs[views], targets[views]))

    def _mean(self, of_views: Callable[[slice], Tensor]) -> float:
        """The mean over all views of what is a mean over some of them."""
        count = len(self._targets)

        def weighed(views: slice) -> float:
            return float(of_views(views)) * len(range(count)[views])

        fit = self._memory.without_gradients
        total: float = sum(fit.run_slices(count, self._settings.batch_size, weighed))
        return total / count


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
