"""Choosing the first scales: of weights from their values, of activations from images."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mimiq_calib.conversion.attention import ExposedAttention
from mimiq_calib.conversion.convert import quantizers_of
from mimiq_calib.conversion.layers import QuantizedConv2d, QuantizedLinear
from mimiq_calib.fitting_batch import FittingBatch, going_back
from mimiq_calib.quantizers.grid_choice import choose_grid
from mimiq_calib.quantizers.observer import ValueSample
from mimiq_calib.quantizers.probability_search import ProbabilityScaleSearch
from mimiq_calib.quantizers.quantizer import Quantizer
from mimiq_calib.quantizers.range_search import RangeMethod, search_scale
from mimiq_runtime.quantization_table import TensorKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.hooks import RemovableHandle

    from mimiq_calib.pixels import PixelScale
    from mimiq_calib.recipe import QuantizationSettings

    _Watched = tuple[dict[Quantizer, ValueSample], dict[Quantizer, ProbabilityScaleSearch]]

__all__ = ["MEMORY_KEY", "observe_activations", "scale_weights"]

MEMORY_KEY = "observation.batch_size"
"""What decides how much memory is needed."""


@torch.no_grad()
def scale_weights(student: nn.Module, settings: QuantizationSettings) -> None:
    """Choose the scale of every weight quantizer, one a channel.

    Args:
        student: A model with quantizers; their scales are set.
        settings: The method and its percentile.
    """
    method = RangeMethod(settings.weight_range)
    for module in student.modules():
        if isinstance(module, QuantizedLinear | QuantizedConv2d):
            quantizer = module.weight_quantizer
            values = module.weight.flatten(start_dim=1)
            scale = search_scale(values, quantizer.grid, method, percentile=settings.percentile)
            quantizer.scale.copy_(scale)


@torch.no_grad()
def observe_activations(
    student: nn.Module,
    settings: QuantizationSettings,
    images: Tensor,
    pixel_scale: PixelScale,
    *,
    batch_size: int,
    advance: Callable[[int, str], None],
) -> None:
    """Choose grid and scale of every activation quantizer from full-precision activations.

    Where the memory of a GPU is not enough for a batch, all is observed anew in smaller ones.

    Args:
        student: A model with quantizers; grids and scales of its activations are set.
        settings: The method and its percentile.
        images: uint8 pixels, ``(count, channels, height, width)``.
        pixel_scale: From pixels to the model's input, on the model's device.
        batch_size: Images a forward pass.
        advance: Called with the number of images done and a note.
    """
    device = next(student.parameters()).device

    def watch(size: int) -> _Watched:
        with _observing(student) as watched, going_back(advance) as count:
            for batch in torch.split(images, size):
                student(pixel_scale.normalise(pixel_scale.to_unit(batch.to(device))))
                count(len(batch), "")
        return watched

    observers, searches = FittingBatch(MEMORY_KEY).run(batch_size, watch)
    method = RangeMethod(settings.activation_range)
    for quantizer, observer in observers.items():
        values = observer.values()
        if method is RangeMethod.MSE and quantizer in searches:
            quantizer.scale.fill_(searches[quantizer].scale())
            continue
        if settings.skewed_grids:
            quantizer.grid = choose_grid(
                values,
                quantizer.bits,
                method,
                percentile=settings.percentile,
                standard=quantizer.grid,
                skew=quantizer.skew,
            )
        scale = search_scale(values, quantizer.grid, method, percentile=settings.percentile)
        quantizer.scale.copy_(scale.squeeze())


@contextlib.contextmanager
def _observing(student: nn.Module) -> Iterator[_Watched]:
    """Let tensors pass unquantized, and watch the activations, until the block ends."""
    observers: dict[Quantizer, ValueSample] = {}
    searches: dict[Quantizer, ProbabilityScaleSearch] = {}
    handles: list[RemovableHandle] = []
    for quantizer in quantizers_of(student):
        if quantizer.kind is TensorKind.ACTIVATION:
            observers[quantizer] = quantizer.observer = ValueSample()
        quantizer.enabled = quantizer.observer is not None
    for module in student.modules():
        if isinstance(module, ExposedAttention):
            searches |= _search_probabilities(module, handles)
    try:
        yield observers, searches
    finally:
        for handle in handles:
            handle.remove()
        for quantizer in quantizers_of(student):
            quantizer.enabled, quantizer.observer = True, None


def _search_probabilities(
    attention: ExposedAttention, handles: list[RemovableHandle]
) -> dict[Quantizer, ProbabilityScaleSearch]:
    """Compare candidate scales of the probabilities by the attention's output, as images pass."""
    quantizer = attention.probability_quantizer
    assert isinstance(quantizer, Quantizer)  # inserted before observation
    search = ProbabilityScaleSearch(quantizer.grid)
    probabilities: list[Tensor] = []
    handles.append(
        quantizer.register_forward_pre_hook(lambda _, inputs: probabilities.append(inputs[0]))
    )
    handles.append(
        attention.value_quantizer.register_forward_pre_hook(
            lambda _, inputs: search.update(probabilities.pop(), inputs[0])
        )
    )
    return {quantizer: search}
