"""Estimating what quantization costs, from the two models and images that nothing was fitted to."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mimiq_calib.conversion.attention import ExposedAttention
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

    Args:
        student: The quantized model, fine-tuned.
        teacher: The full-precision model.
        images: uint8 pixels that were in no training, ``(count, channels, height, width)``.
        preprocessing: Scale of the pixels.
        source: Where the images came from.
        batch_size: Images a forward pass.
        seed: Of the interval's resampling.
        advance: Called with the number of images done and a note.
    """
    device = next(teacher.parameters()).device
    pixel_scale = PixelScale(preprocessing, device)
    exact, quantized = [], []
    noise: dict[str, float] = {}
    signal: dict[str, float] = {}
    for batch in torch.split(images, batch_size):
        x = pixel_scale.normalise(pixel_scale.to_unit(batch.to(device)))
        with _block_outputs(teacher) as right, _block_outputs(student) as given:
            exact.append(teacher(x))
            quantized.append(student(x))
            for name, output in right.items():
                error = (given[name] - output).double().square().sum()
                noise[name] = noise.get(name, 0.0) + float(error)
                energy = output.double().square().sum()
                signal[name] = signal.get(name, 0.0) + float(energy)
        advance(len(batch), "")
    return estimate_from_logits(
        torch.cat(exact).float().cpu().numpy(),
        torch.cat(quantized).float().cpu().numpy(),
        source=source,
        blocks={name: _decibels(signal[name], noise[name]) for name in signal},
        seed=seed,
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
