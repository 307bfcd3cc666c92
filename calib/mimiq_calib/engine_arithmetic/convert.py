"""From a calibrated student to one that computes as an integer engine does."""

from __future__ import annotations

import copy

from torch import nn

from mimiq_calib.conversion.attention import ExposedAttention
from mimiq_calib.conversion.layers import QuantizedConv2d, QuantizedLinear
from mimiq_calib.engine_arithmetic.gelu import KernelGelu
from mimiq_calib.engine_arithmetic.integer_products import (
    Codes,
    IntegerConv2d,
    IntegerLinear,
    Requantize,
    Rescale,
)
from mimiq_calib.engine_arithmetic.layer_norm import KernelLayerNorm
from mimiq_calib.engine_arithmetic.softmax import KernelSoftmax
from mimiq_calib.quantizers.quantizer import Quantizer
from mimiq_runtime.grid import WIDEST

__all__ = ["in_engine_arithmetic"]


def in_engine_arithmetic(student: nn.Module) -> nn.Module:
    """Copy a student and let the copy compute as an integer engine computes.

    Products are summed over integer codes, exactly, and rescaled once, or made codes of where
    nothing stands between a product and the next quantizer. LayerNorm, GELU and softmax round as
    the kernels of ONNX Runtime on x86 do. The meaning does not change: without rounding,
    the copy and the student would give the same numbers. It is for inference only, without
    gradients.

    Args:
        student: Calibrated; it is not changed. Layers with quantizers switched off stay in
            floating point.

    Returns:
        A copy in inference mode.
    """
    copied = copy.deepcopy(student).eval().requires_grad_(False)
    for name, module in list(copied.named_modules()):
        if isinstance(module, ExposedAttention):
            _convert_attention(module)
        elif (replacement := _replacement(module)) is not None:
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, replacement.eval())
    for module in copied.modules():
        if isinstance(module, ExposedAttention):
            _requantize_head_outputs(module)
    return copied


def _replacement(module: nn.Module) -> nn.Module | None:
    if isinstance(module, QuantizedLinear):
        enabled = module.input_quantizer.enabled and module.weight_quantizer.enabled
        return IntegerLinear(module) if enabled else None
    if isinstance(module, QuantizedConv2d):
        quantizer = module.input_quantizer
        if isinstance(quantizer, Quantizer) and quantizer.enabled:
            return IntegerConv2d(module, quantizer)
    if KernelLayerNorm.applies_to(module):
        return KernelLayerNorm(module)
    if KernelGelu.applies_to(module):
        return KernelGelu()
    return None


def _convert_attention(attention: ExposedAttention) -> None:
    """The slots give codes, and the taps behind the products rescale the sums."""
    attention.softmax = KernelSoftmax()
    slots = [
        attention.query_quantizer,
        attention.key_quantizer,
        attention.probability_quantizer,
        attention.value_quantizer,
    ]
    quantizers = [slot for slot in slots if isinstance(slot, Quantizer) and slot.enabled]
    if len(quantizers) < len(slots):
        return
    query, key, probability, value = quantizers
    attention.query_quantizer, attention.key_quantizer = Codes(query), Codes(key)
    attention.probability_quantizer, attention.value_quantizer = Codes(probability), Codes(value)
    attention.logits = Rescale(query.scale, key.scale)
    attention.head_outputs = Rescale(probability.scale, value.scale)


def _requantize_head_outputs(attention: ExposedAttention) -> None:
    """The weighted values become codes at once where only their layout changes in between.

    That is how ONNX Runtime fuses a MatMul and what quantizes its output. A grid narrower than its
    container is kept by a Clip that stands in between, and then it does not.
    """
    rescale, projection = attention.head_outputs, attention.proj
    if not (isinstance(rescale, Rescale) and isinstance(projection, IntegerLinear)):
        return
    grid = projection.codes.grid
    only_layout = isinstance(attention.norm, nn.Identity) and attention.gate is None
    if only_layout and grid.qmax - grid.qmin == WIDEST:
        projection.codes = Requantize(projection.codes, rescale)
        attention.head_outputs = nn.Identity()
