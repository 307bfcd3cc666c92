"""What the tests of the calibration share: a small input, quiet progress, plain recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mimiq_calib.pixels import PixelScale
from mimiq_calib.recipe import DistillationSettings, QuantizationSettings, SynthesisSettings
from mimiq_runtime.manifest import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
PIXEL_SCALE = PixelScale(PREPROCESSING, torch.device("cpu"))
CPU = torch.device("cpu")


def no_advance(_steps: int, _note: str = "") -> None:
    """Progress that nobody watches."""


def pixels(count: int, *, channels: int = 3, size: int = 32, seed: int = 5) -> Tensor:
    """Smooth random pictures, uint8: neighbouring pixels alike, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    fine = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return (fine * 255).round().to(torch.uint8)


def quantization(
    weight_bits: int = 4, activation_bits: int = 4, **others: Any
) -> QuantizationSettings:
    return QuantizationSettings(weight_bits=weight_bits, activation_bits=activation_bits, **others)


def synthesis(**others: Any) -> SynthesisSettings:
    """Settings in single precision: ``auto`` is bfloat16 on some processors."""
    chosen = {"num_images": 4, "batch_size": 4, "iterations": 2, "precision": "fp32"} | others
    return SynthesisSettings(**chosen)


def distillation(**others: Any) -> DistillationSettings:
    chosen = {"epochs": 1, "batch_size": 4, "precision": "fp32"} | others
    return DistillationSettings(**chosen)


def set_quantizers(model: nn.Module, *, enabled: bool) -> None:
    """Let all tensors pass, or quantize them."""
    from mimiq_calib.conversion.convert import quantizers_of

    for quantizer in quantizers_of(model):
        quantizer.enabled = enabled


def all_indices(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """For the slow loops of reference implementations."""
    import numpy as np

    return iter(np.ndindex(shape))


def float64(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()
