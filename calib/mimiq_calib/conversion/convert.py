"""From a timm model to its teacher (attention in the open) and its student (quantized)."""

from __future__ import annotations

import copy
import fnmatch
from typing import TYPE_CHECKING

from timm.layers import Attention, AttentionRope
from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn

from mimiq_calib.conversion.attention import ExposedAttention, ExposedTokenAttention
from mimiq_calib.conversion.layers import QuantizedConv2d, QuantizedLinear
from mimiq_calib.conversion.support import check_support
from mimiq_calib.conversion.window_attention import ExposedWindowAttention
from mimiq_calib.quantizers.quantizer import Quantizer, Skew
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.grid import Grid
from mimiq_runtime.quantization_table import TensorKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from mimiq_calib.recipe import QuantizationSettings

__all__ = [
    "build_student",
    "check_layer_bits",
    "expose_attention",
    "insert_quantizers",
    "quantizers_of",
]


def expose_attention(model: nn.Module) -> nn.Module:
    """Copy a timm model and write its attention out; nothing is quantized yet.

    Args:
        model: A timm model; it is not changed.

    Returns:
        A copy in inference mode with frozen parameters under the same names, which gives the
        same outputs.

    Raises:
        UnsupportedModelError: The model holds something whose conversion is not known.
    """
    check_support(model)
    exposed = copy.deepcopy(model).eval().requires_grad_(False)
    for name, module in list(exposed.named_modules()):
        if isinstance(module, Attention | AttentionRope):
            _replace(exposed, name, ExposedTokenAttention(module, name).eval())
        elif isinstance(module, SwinTransformerBlock):
            module.attn = ExposedWindowAttention(module, f"{name}.attn").eval()
    return exposed


def build_student(teacher: nn.Module, settings: QuantizationSettings) -> nn.Module:
    """Copy a teacher and insert quantizers into the copy.

    Args:
        teacher: What :func:`expose_attention` returned; it is not changed.
        settings: Bit widths.

    Returns:
        The student, in inference mode, uncalibrated: scales are 1. Parameters keep their names.
    """
    student = copy.deepcopy(teacher)
    insert_quantizers(student, settings)
    return student.eval()


def insert_quantizers(student: nn.Module, settings: QuantizationSettings) -> None:
    """Put a quantizer on every tensor of the products of a model with exposed attention.

    Quantized are input and weight of every Linear and convolution, and both operands of both
    attention products. Scales are 1 until they are calibrated.

    Args:
        student: Changed in place.
        settings: Bit widths.
    """
    modules = list(student.named_modules())
    for name, module in modules:
        if isinstance(module, ExposedAttention):
            _fill_attention_slots(module, name, settings)
        elif isinstance(module, nn.Linear):
            weight_bits, input_bits = settings.bits_of_layer(name)
            quantized: nn.Module = QuantizedLinear(
                module,
                _activation_quantizer(
                    f"{name}.input_quantizer",
                    input_bits,
                    Skew.CONTAINER if module.bias is None else Skew.ANY,
                ),
                _weight_quantizer(
                    f"{name}.weight_quantizer", weight_bits, module.out_features, settings
                ),
            )
            _replace(student, name, quantized)
        elif isinstance(module, nn.Conv2d):
            weight_bits, input_bits = settings.bits_of_layer(name)
            quantized = QuantizedConv2d(
                module,
                _activation_quantizer(f"{name}.input_quantizer", input_bits)
                if settings.quantize_images
                else nn.Identity(),
                _weight_quantizer(
                    f"{name}.weight_quantizer", weight_bits, module.out_channels, settings
                ),
            )
            _replace(student, name, quantized)
    for _, module in modules:
        if isinstance(module, ExposedWindowAttention):
            _count_windows(module)


def check_layer_bits(model: nn.Module, settings: QuantizationSettings) -> None:
    """Refuse a pattern of ``quantization.layer_bits`` that names nothing: a typing mistake.

    Args:
        model: A model with exposed attention, quantized or not.
        settings: With the patterns.

    Raises:
        InvalidInputError: Names the first such pattern, and what there is.
    """
    names = []
    for name, module in model.named_modules():
        if isinstance(module, ExposedAttention):
            names += [f"{name}.{slot}" for slot in ("query", "key", "value", "probability")]
        elif isinstance(module, nn.Linear | nn.Conv2d | QuantizedLinear | QuantizedConv2d):
            names.append(name)
    for pattern in settings.layer_bits:
        if not fnmatch.filter(names, pattern):
            raise InvalidInputError(
                f"quantization.layer_bits: no layer of this model matches {pattern!r}; there are "
                f"{len(names)} names such as {', '.join(names[:7])} and {names[-1]}."
            )


def quantizers_of(model: nn.Module) -> Iterator[Quantizer]:
    """All quantizers of a student, in the order of its modules."""
    return (module for module in model.modules() if isinstance(module, Quantizer))


def _fill_attention_slots(
    attention: ExposedAttention, name: str, settings: QuantizationSettings
) -> None:
    for slot in ("query", "key", "value"):
        _, bits = settings.bits_of_layer(f"{name}.{slot}")
        quantizer = _activation_quantizer(f"{name}.{slot}_quantizer", bits)
        setattr(attention, f"{slot}_quantizer", quantizer)
    # Probabilities are never negative: a signed grid would waste half its codes.
    _, bits = settings.bits_of_layer(f"{name}.probability")
    if attention.head_unit is None:
        # In every student, so that all of them have the same tensors.
        attention.head_unit = _ones_of_heads(attention)
    grid = Grid.signed(bits) if settings.signed_probabilities else Grid.unsigned(bits)
    attention.probability_quantizer = Quantizer(
        f"{name}.probability_quantizer", TensorKind.ACTIVATION, bits, grid
    )


def _count_windows(attention: ExposedWindowAttention) -> None:
    for quantizer in quantizers_of(attention):
        if quantizer.kind is TensorKind.ACTIVATION:
            quantizer.windows = attention.windows


def _ones_of_heads(attention: ExposedAttention) -> Tensor:
    weight = next(attention.proj.parameters())
    return weight.new_ones(attention.num_heads, 1, weight.shape[1] // attention.num_heads)


def _activation_quantizer(name: str, bits: int, skew: Skew = Skew.CONTAINER) -> Quantizer:
    return Quantizer(name, TensorKind.ACTIVATION, bits, Grid.signed(bits), skew=skew)


def _weight_quantizer(
    name: str, bits: int, channels: int, settings: QuantizationSettings
) -> Quantizer:
    return Quantizer(
        name,
        TensorKind.WEIGHT,
        bits,
        Grid.signed(bits),
        channels=channels,
        recomputed=settings.weight_scales == "recomputed",
    )


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
