"""Small transformers with weights that matter, and students of them with hand-made scales."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.layers import AttentionRope
from torch import Tensor, nn

from mimiq_calib.conversion.convert import build_student, expose_attention, quantizers_of
from mimiq_calib.quantizers.observer import ValueSample
from mimiq_calib.quantizers.quantizer import Skew
from mimiq_calib.recipe import QuantizationSettings
from mimiq_runtime.grid import Grid
from mimiq_runtime.quantization_table import TensorKind

if TYPE_CHECKING:
    import onnx_ir as ir

    from mimiq_calib.quantizers.quantizer import Quantizer

INPUT_SIZE = (3, 32, 32)

SATURATION = 0.8
"""Scales cover this share of the largest value, so that every grid clips something."""


@dataclass(frozen=True)
class Exported:
    """A torch model and the graph it became; a student's teacher, or the timm model of one."""

    torch_model: nn.Module
    graph: ir.Model
    original: nn.Module


class UnfusedAttention(AttentionRope):
    """Only a shorthand to build one: its instances become plain AttentionRope."""

    def __init__(self, *arguments: Any, **others: Any) -> None:
        super().__init__(*arguments, qkv_fused=False, **others)


def tiny_vit(**arguments: object) -> nn.Module:
    """Random weights from a fixed seed, large enough for attention that is not uniform."""
    torch.manual_seed(7)
    architecture = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    architecture |= {"num_classes": 10}
    name = arguments.pop("name", "vit_tiny_patch16_224")
    model: nn.Module = timm.create_model(name, **architecture | arguments)
    return _with_weights_that_matter(model)


def tiny_swin(**arguments: object) -> nn.Module:
    """Four windows of 16 tokens, plain and shifted; then one window after the patch merging."""
    torch.manual_seed(7)
    architecture = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 24}
    architecture |= {"depths": (2, 2), "num_heads": (2, 3), "num_classes": 10}
    name = arguments.pop("name", "swin_tiny_patch4_window7_224")
    model: nn.Module = timm.create_model(name, **architecture | arguments)
    return _with_weights_that_matter(model)


def _with_weights_that_matter(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
        else:
            # Biases of 0 and LayerNorm weights of 1 would hide a mistake; so no equal ones.
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def images(batch: int) -> Tensor:
    """Always the same images, ``(batch, 3, 32, 32)``."""
    return torch.randn(5, *INPUT_SIZE, generator=torch.Generator().manual_seed(3))[:batch]


def calibrated_student(
    teacher: nn.Module, settings: QuantizationSettings, *, skewed: bool = False
) -> nn.Module:
    """Scales from the values of :func:`images`, with :data:`SATURATION`.

    With ``skewed`` an eighth of the codes of each layer's input is negative: at 8 bits that grid
    leaves the container.
    """
    student = build_student(teacher, settings)
    quantizers = list(quantizers_of(student))
    if skewed:
        for quantizer in quantizers:
            if quantizer.skew is Skew.ANY:
                quantizer.grid = Grid.skewed(quantizer.bits, 2**quantizer.bits // 8)
    for quantizer in quantizers:
        quantizer.observer = ValueSample()
    with torch.no_grad():
        student(images(5))
    for quantizer in quantizers:
        quantizer.scale.data = SATURATION * _largest(quantizer, student) / quantizer.grid.qmax
        quantizer.observer = None
    return student


@functools.cache
def tiny_teacher() -> nn.Module:
    return expose_attention(tiny_vit())


@functools.cache
def tiny_swin_teacher() -> nn.Module:
    return expose_attention(tiny_swin())


@functools.cache
def tiny_swin_student(weight_bits: int, activation_bits: int) -> nn.Module:
    settings = QuantizationSettings(weight_bits=weight_bits, activation_bits=activation_bits)
    return calibrated_student(tiny_swin_teacher(), settings)


@functools.cache
def tiny_student(weight_bits: int, activation_bits: int, *, skewed: bool = False) -> nn.Module:
    settings = QuantizationSettings(weight_bits=weight_bits, activation_bits=activation_bits)
    return calibrated_student(tiny_teacher(), settings, skewed=skewed)


def _largest(quantizer: Quantizer, student: nn.Module) -> Tensor:
    if quantizer.kind is TensorKind.WEIGHT:
        layer = student.get_submodule(quantizer.name.removesuffix(".weight_quantizer"))
        return layer.weight.detach().flatten(1).abs().amax(dim=1)
    assert quantizer.observer is not None
    return quantizer.observer.values().abs().max()
