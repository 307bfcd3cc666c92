"""Reading the codes of a quantized model while it runs, and putting others in their place."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from mimiq_calib.engine_arithmetic.integer_products import Codes
from mimiq_calib.quantizers.learned_step import quantize_to_codes
from mimiq_calib.quantizers.quantizer import Quantizer
from mimiq_runtime.layer_parity import QuantizedValues, align_layout
from mimiq_runtime.quantization_table import TensorKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

__all__ = ["LayerTracer"]


class LayerTracer:
    """Runs a student, and tells the codes of each of its activation quantizers.

    A difference in one layer changes all that come after it. To see layers one by one, each
    quantizer can be made to pass on the codes of another implementation instead of its own: what
    it told then is what this step makes of the other side's inputs.

    Args:
        student: A student, or its copy in engine arithmetic; in inference mode.
    """

    def __init__(self, student: nn.Module) -> None:
        self._model = student
        self._places: dict[str, Codes | Quantizer] = {}
        for name, module in student.named_modules():
            if isinstance(module, Codes):
                self._places[_quantizer_name(name)] = module
            elif _quantizes_activations(module):
                self._places[module.name] = module

    @property
    def quantizers(self) -> list[str]:
        """Dotted names of the activation quantizers, in the order of the modules."""
        return list(self._places)

    def run(
        self, images: NDArray[np.float32], imposed: Mapping[str, QuantizedValues]
    ) -> tuple[NDArray[np.float32], dict[str, QuantizedValues]]:
        """Run a batch.

        Args:
            images: Normalised images (N, C, H, W).
            imposed: By quantizer, what it passes on; in any layout that
                :func:`~mimiq_runtime.layer_parity.align_layout` knows. Its own codes where there
                are none.

        Returns:
            Logits (N, classes), and by quantizer the codes that it made itself.
        """
        found: dict[str, QuantizedValues] = {}
        with self._tapped(found, imposed), torch.inference_mode():
            logits: NDArray[np.float32] = self._model(torch.from_numpy(images)).float().numpy()
        return logits, found

    @contextlib.contextmanager
    def _tapped(
        self, found: dict[str, QuantizedValues], imposed: Mapping[str, QuantizedValues]
    ) -> Iterator[None]:
        handles = [
            module.register_forward_hook(_tap(name, module, found, imposed.get(name)))
            for name, module in self._places.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _quantizes_activations(module: nn.Module) -> TypeGuard[Quantizer]:
    return isinstance(module, Quantizer) and module.enabled and module.kind is TensorKind.ACTIVATION


def _quantizer_name(path: str) -> str:
    """Layers in engine arithmetic keep their codes where the student had its input quantizer."""
    parent, _, slot = path.rpartition(".")
    return f"{parent}.input_quantizer" if slot == "codes" else path


def _tap(
    name: str,
    module: Codes | Quantizer,
    found: dict[str, QuantizedValues],
    imposed: QuantizedValues | None,
) -> Any:
    scale = float(module.scale)

    def hook(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        own = isinstance(module, Codes)
        codes = output if own else quantize_to_codes(inputs[0], module.scale, module.grid)
        found[name] = QuantizedValues(codes.numpy(), scale)
        aligned = None if imposed is None else align_layout(imposed.codes, codes.numpy())
        if imposed is None or aligned is None:
            return None
        # The other side's value in steps of this side's grid: whole numbers if the scales agree.
        steps = torch.from_numpy(aligned.astype("float32")) * (imposed.scale / scale)
        return steps if own else steps * module.scale

    return hook
