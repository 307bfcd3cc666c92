r"""How much the logits depend on each value between two blocks.

To first order, an error e in the output of a block moves the softened class distribution by a
Kullback-Leibler divergence of :math:`\frac{1}{2 T^2} e^T F e` with the Fisher information
:math:`F = T^2 \, E_{y \sim p}[g g^T]`, where p is the softmax of the logits over T and g the
gradient of :math:`\log p_y` by the output. Its diagonal, the mean over images, weighs the squared
error of a block's output as in BRECQ (arXiv 2102.05426, eq. 10). There y is the true label; here
it is drawn from the teacher's own distribution, which needs no labels and is what F says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mimiq_runtime.errors import DivergedError

if TYPE_CHECKING:
    from mimiq_calib.reconstruction.chain import Chain

__all__ = ["output_importance"]


def output_importance(
    teacher: Chain,
    images: Tensor,
    *,
    temperature: float,
    batch_size: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """The Fisher information's diagonal for the output of each link but the tail.

    Args:
        teacher: The full-precision model, parameters frozen.
        images: Normalised, ``(count, channels, height, width)``.
        temperature: Of the softmax, as in distillation.
        batch_size: Images a pass.
        generator: For the drawn classes.

    Returns:
        For each link a tensor of its output's shape without the batch, scaled to a mean of 1.
        A link whose output the logits do not depend on, or so much that single precision cannot
        say it, gets ones.

    Raises:
        DivergedError: The logits of an image are not finite.
    """
    sums = [torch.zeros(()) for _ in teacher.links[:-1]]
    for batch in torch.split(images, batch_size):
        outputs: list[Tensor] = []
        with torch.enable_grad():
            x = batch
            for link in teacher.links[:-1]:
                x = link(x)
                if not outputs:
                    x.requires_grad_(True)
                x.retain_grad()
                outputs.append(x)
            log_probabilities = torch.log_softmax(teacher.links[-1](x).float() / temperature, -1)
            if not torch.isfinite(log_probabilities).all():
                raise DivergedError(
                    "The full-precision model gives logits that are not finite numbers for one of "
                    "the calibration images; check the checkpoint."
                )
            drawn = torch.multinomial(
                log_probabilities.detach().exp().cpu(), 1, generator=generator
            ).to(batch.device)
            torch.autograd.backward(log_probabilities.gather(1, drawn).sum())
        for index, output in enumerate(outputs):
            assert output.grad is not None  # every link is on the way to the logits
            sums[index] = sums[index].to(batch.device) + output.grad.square().sum(dim=0)
    return [_scaled(total) for total in sums]


def _scaled(total: Tensor) -> Tensor:
    mean = total.mean()
    usable = mean > 0 and torch.isfinite(mean)
    return total / mean if usable else torch.ones_like(total)
