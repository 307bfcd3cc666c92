"""Estimating what quantization costs, from the two models and images that nothing was fitted to."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mimiq_calib.conversion.attention import ExposedAttention
from mimiq_calib.fitting_batch import FittingBatch
from mimiq_calib.observation import MEMORY_KEY
from mimiq_calib.pixels import PixelScale
from mimiq_runtime.estimate import CostEstimate, estimate_from_logits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mimiq_runtime.manifest import Preprocessing

__all__ = ["estimate_cost"]


@torch.no_grad()
def estimate_cost(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    preprocessing: Preprocessing,
    *,
    source: str,
    batch_size: int,
    seed: int,
    advance: Callable[[int, str], None],
) -> CostEstimate:
    """Compare both models on held-out images, block by block and at the logits.

    Where the memory of a GPU is not enough for a batch, smaller ones follow.

    Args:
        student: The quantized model, fine-tuned.
        teacher: The full-precision model.
        images: uint8 pixels that were in no training, ``(count, channels, height, width)``.
        preprocessing: Scale of the pixels.
        source: Where the images came from.
        batch_size: Images a forward pass.
        seed: Of the interval's resampling.
        advance: Called with the number of images done and a note.

    Raises:
        InvalidInputError: The memory of the GPU is not enough for one image.
    """
    device = next(teacher.parameters()).device
    pixel_scale = PixelScale(preprocessing, device)

    def compare(part: slice) -> _Comparison:
        x = pixel_scale.normalise(pixel_scale.to_unit(images[part].to(device)))
        found = _compare(student, teacher, x)
        advance(len(x), "")
        return found

    parts = FittingBatch(MEMORY_KEY).run_slices(len(images), batch_size, compare)
    return estimate_from_logits(
        torch.cat([part.exact for part in parts]).numpy(),
        torch.cat([part.quantized for part in parts]).numpy(),
        source=source,
        blocks={
            name: _decibels(
                sum(part.signal[name] for part in parts), sum(part.noise[name] for part in parts)
            )
            for name in parts[0].signal
        },
        seed=seed,
    )


@dataclass(frozen=True)
class _Comparison:
    """Logits of both models, on the CPU; energies of the blocks' outputs and of their errors."""

    exact: Tensor
    quantized: Tensor
    signal: dict[str, float]
    noise: dict[str, float]


def _compare(student: nn.Module, teacher: nn.Module, images: Tensor) -> _Comparison:
    with _block_outputs(teacher) as right, _block_outputs(student) as given:
        exact, quantized = teacher(images), student(images)
        return _Comparison(
            exact.float().cpu(),
            quantized.float().cpu(),
            signal={name: float(output.double().square().sum()) for name, output in right.items()},
            noise={
                name: float((given[name] - output).double().square().sum())
                for name, output in right.items()
            },
        )


def _decibels(signal: float, noise: float) -> float | None:
    finite = 0 < noise < math.inf and 0 < signal < math.inf
    return 10 * math.log10(signal / noise) if finite else None


@contextlib.contextmanager
def _block_outputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Outputs of the modules that hold an attention, by name, of the last forward pass."""
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.update({name: output})
        )
        for name, module in model.named_modules()
        if any(isinstance(child, ExposedAttention) for child in module.children())
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
