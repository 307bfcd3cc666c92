"""What quantization does to each layer's output: by this layer alone, and by all up to it."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mimiq_calib.conversion.attention import ExposedAttention
from mimiq_calib.conversion.layers import QuantizedConv2d, QuantizedLinear
from mimiq_calib.quantizers.quantizer import Quantizer
from mimiq_runtime.inside_view import LayerError, LayerKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["LayerErrorSums"]

SLOTS = ("query_quantizer", "key_quantizer", "probability_quantizer", "value_quantizer")


@dataclass
class _Energy:
    """Sums of squares: of a signal, and of what differs from it."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, exact: Tensor, quantized: Tensor) -> None:
        difference = quantized.double() - exact.double()
        self.noise += float(difference.square().sum())
        self.signal += float(exact.double().square().sum())

    def decibels(self) -> float | None:
        finite = 0 < self.noise < math.inf and 0 < self.signal < math.inf
        return 10 * math.log10(self.signal / self.noise) if finite else None


class LayerErrorSums:
    """Errors of a student's layers, summed over the batches it is given.

    A layer is a Linear, a convolution, or an attention with its two products. The output of a
    layer that makes queries, keys or values is not compared with the full-precision model's:
    reparametrization moves and scales it, and takes that back further on.

    Args:
        student: The quantized model.
        teacher: The full-precision model.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        self._student = student
        self._teacher = teacher
        self._own: dict[str, _Energy] = defaultdict(_Energy)
        self._total: dict[str, _Energy] = defaultdict(_Energy)
        self._kinds: dict[str, LayerKind] = {}

    @torch.no_grad()
    def add(self, images: Tensor) -> None:
        """Run both models on normalised images, ``(batch, channels, height, width)``."""
        layers = _layers(self._student)
        compared = _comparable(self._student, layers)
        with _outputs(self._teacher, compared) as exact:
            self._teacher(images)
        with self._watching(layers, exact):
            self._student(images)

    def errors(self) -> list[LayerError]:
        """One row a layer, in the order in which they ran."""
        return [
            LayerError(
                layer=name,
                kind=self._kinds[name],
                own_db=energy.decibels(),
                total_db=self._total[name].decibels() if name in self._total else None,
            )
            for name, energy in self._own.items()
        ]

    @contextlib.contextmanager
    def _watching(
        self, layers: Mapping[str, nn.Module], exact: Mapping[str, Tensor]
    ) -> Iterator[None]:
        again = False

        def compare(
            name: str,
            module: nn.Module,
            inputs: tuple[Any, ...],
            named: dict[str, Any],
            output: Tensor,
        ) -> None:
            nonlocal again
            if again:  # the second pass below runs the layers inside an attention once more
                return
            again = True
            try:
                with _without_quantizers(module):
                    unquantized = module(*inputs, **named)
            finally:
                again = False
            self._kinds[name] = _kind(module)
            self._own[name].add(unquantized, output)
            if name in exact:
                self._total[name].add(exact[name], output)

        handles = [
            module.register_forward_hook(
                lambda module, inputs, named, output, name=name: compare(
                    name, module, inputs, named, output
                ),
                with_kwargs=True,
            )
            for name, module in layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _layers(student: nn.Module) -> dict[str, nn.Module]:
    kinds = (QuantizedLinear, QuantizedConv2d, ExposedAttention)
    return {name: module for name, module in student.named_modules() if isinstance(module, kinds)}


def _kind(module: nn.Module) -> LayerKind:
    if isinstance(module, ExposedAttention):
        return "attention"
    return "linear" if isinstance(module, QuantizedLinear) else "convolution"


def _comparable(student: nn.Module, layers: Mapping[str, nn.Module]) -> set[str]:
    """Layers whose output means the same in both models."""
    moved = {
        id(layer)
        for module in student.modules()
        if isinstance(module, ExposedAttention)
        for layer in module.input_layers()
    }
    return {name for name, module in layers.items() if id(module) not in moved}


@contextlib.contextmanager
def _outputs(model: nn.Module, names: set[str]) -> Iterator[dict[str, Tensor]]:
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.update({name: output})
        )
        for name, module in model.named_modules()
        if name in names
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _without_quantizers(module: nn.Module) -> Iterator[None]:
    """Leave the operands of this layer alone; an attention's Linears stay quantized."""
    children = (
        [getattr(module, slot) for slot in SLOTS]
        if isinstance(module, ExposedAttention)
        else list(module.children())
    )
    quantizers = [child for child in children if isinstance(child, Quantizer) and child.enabled]
    try:
        for quantizer in quantizers:
            quantizer.enabled = False
        yield
    finally:
        for quantizer in quantizers:
            quantizer.enabled = True
