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
    from mimiq_calib.fitting_batch import FittingBatch
    from mimiq_calib.reconstruction.chain import Chain

__all__ = ["output_importance"]


def output_importance(
    teacher: Chain,
    images: Tensor,
    *,
    temperature: float,
    batch_size: int,
    fit: FittingBatch,
    generator: torch.Generator,
) -> list[Tensor]:
    """The Fisher information's diagonal for the output of each link but the tail.

    Args:
        teacher: The full-precision model, parameters frozen.
        images: Normalised, ``(count, channels, height, width)``.
        temperature: Of the softmax, as in distillation.
        batch_size: Images a pass.
        fit: How many of them the memory is enough for.
        generator: For the drawn classes.

    Returns:
        For each link a tensor of its output's shape without the batch, scaled to a mean of 1.
        A link whose output the logits do not depend on, or so much that single precision cannot
        say it, gets ones.

    Raises:
        DivergedError: The logits of an image are not finite.
        InvalidInputError: The memory of the GPU is not enough for one image.
    """

    def classes(_size: int) -> int:
        with torch.no_grad():
            return _forward(teacher, images[:1])[-1].shape[-1]

    def squares(part: slice) -> list[Tensor]:
        gradients = _gradients(teacher, images[part], races[part], temperature)
        return [gradient.square().sum(dim=0) for gradient in gradients]

    races = _races(len(images), fit.run(1, classes), batch_size, generator)
    found = fit.run_slices(len(images), batch_size, squares)
    return [_scaled(sum(parts[1:], parts[0])) for parts in zip(*found, strict=True)]


def _races(count: int, classes: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """A waiting time for each image and class, on the CPU, drawn before anything is computed.

    Divided by a probability, the shortest is that of a class drawn with this probability. So
    ``torch.multinomial`` draws; there, how many images come together would change what is drawn.
    """
    sizes = [len(batch) for batch in torch.split(torch.arange(count), batch_size)]
    times = [torch.empty(size, classes).exponential_(generator=generator) for size in sizes]
    return torch.cat(times)


def _gradients(teacher: Chain, images: Tensor, races: Tensor, temperature: float) -> list[Tensor]:
    """Of each image's drawn log-probability, by the output of each link but the tail."""
    with torch.enable_grad():
        *outputs, logits = _forward(teacher, images)
        log_probabilities = torch.log_softmax(logits.float() / temperature, -1)
        if not torch.isfinite(log_probabilities).all():
            raise DivergedError(
                "The full-precision model gives logits that are not finite numbers for one of "
                "the calibration images; check the checkpoint."
            )
        probabilities = log_probabilities.detach().exp().cpu()
        drawn = (probabilities / races).argmax(dim=-1, keepdim=True).to(images.device)
        torch.autograd.backward(log_probabilities.gather(1, drawn).sum())
    gradients = []
    for output in outputs:
        assert output.grad is not None  # every link is on the way to the logits
        gradients.append(output.grad)
    return gradients


def _forward(teacher: Chain, images: Tensor) -> list[Tensor]:
    """What each link gives; gradients by all of them are kept, where there are any."""
    outputs = [images]
    for link in teacher.links:
        outputs.append(link(outputs[-1]))
        if torch.is_grad_enabled():
            outputs[1].requires_grad_(True)
            outputs[-1].retain_grad()
    return outputs[1:]


def _scaled(total: Tensor) -> Tensor:
    mean = total.mean()
    usable = mean > 0 and torch.isfinite(mean)
    return total / mean if usable else torch.ones_like(total)
