"""Which models can be converted, and a reason by name for each that cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from timm.layers import Attention, AttentionRope
from timm.models.swin_transformer import WindowAttention

from mimiq_runtime.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_support"]

_MODELS = {"SwinTransformer", "VisionTransformer", "VisionTransformerDistilled"}

_ATTENTION = (Attention, AttentionRope, WindowAttention)

_CONTAINERS = {
    "Block",
    "ClassifierHead",
    "LayerScale",
    "Mlp",
    "PatchEmbed",
    "PatchMerging",
    "ResPostBlock",
    "SelectAdaptivePool2d",
    "Sequential",
    "SwinTransformerBlock",
    "SwinTransformerStage",
    *_MODELS,
}

# No products: they stay in floating point and change no grid.
_FLOATING_POINT = {
    "Dropout",
    "DropPath",
    "FastAdaptiveAvgMaxPool",
    "FastAdaptiveAvgPool",
    "FastAdaptiveCatAvgMaxPool",
    "FastAdaptiveMaxPool",
    "GELU",
    "GELUTanh",
    "GELUQuick",
    "Identity",
    "LayerNorm",
    "PatchDropout",
    "QuickGELU",
    "ReLU",
    "RmsNorm",
    "SiLU",
    "Softmax",
}

_QUANTIZED = {"Conv2d", "Linear"}


def check_support(model: nn.Module) -> None:
    """Refuse a model that holds anything whose conversion is not known to be exact.

    Types are compared by name and home: a subclass may compute something else.

    Args:
        model: A timm model as it was created.

    Raises:
        UnsupportedModelError: Names the first module that cannot be converted, and why.
    """
    _check_model(model)
    inside_attention: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if type(module) in _ATTENTION:
            inside_attention += (f"{name}.",)
        elif not name.startswith(inside_attention) or not inside_attention:
            _check_module(name, module)
        elif _type_name(module) not in _FLOATING_POINT | _QUANTIZED:
            _refuse(name, module)


def _check_model(model: nn.Module) -> None:
    kind = type(model).__name__
    if _type_name(model) not in _MODELS:
        raise UnsupportedModelError(
            kind,
            "only timm's VisionTransformer models (ViT, DeiT, DeiT distilled, DeiT-3) and its "
            "SwinTransformer can be used",
        )
    if getattr(model, "num_classes", 0) < 1:
        raise UnsupportedModelError(kind, "it has no classifier (num_classes is 0)")
    if getattr(model, "global_pool", "") == "":
        raise UnsupportedModelError(kind, "without pooling it gives no logits (global_pool is '')")


def _check_module(name: str, module: nn.Module) -> None:
    if _type_name(module) not in _CONTAINERS | _FLOATING_POINT | _QUANTIZED:
        _refuse(name, module)


def _refuse(name: str, module: nn.Module) -> None:
    raise UnsupportedModelError(
        name or type(module).__name__,
        f"no exact conversion is known for a {type(module).__module__}.{type(module).__name__}",
    )


def _type_name(module: nn.Module) -> str:
    kind = type(module)
    from_known_library = kind.__module__.split(".")[0] in {"torch", "timm"}
    return kind.__name__ if from_known_library else ""
