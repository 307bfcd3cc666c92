"""The list of products against what torch is asked to multiply."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from _helpers.calib_cases import quantization
from _helpers.tiny_students import UnfusedAttention, images, tiny_swin, tiny_vit
from timm.layers import AttentionRope
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mimiq_calib.conversion.convert import build_student, expose_attention, quantizers_of
from mimiq_calib.conversion.coverage import list_products

aten = torch.ops.aten
PRODUCTS = {
    **dict.fromkeys((aten.mm.default, aten.addmm.default, aten.bmm.default), "product"),
    aten.convolution.default: "convolution",
}


class CountedProducts(TorchDispatchMode):
    """Counts the products below all modules and hooks, in the kernels that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "attention" not in str(func), "a kernel that hides two products"
        if func in PRODUCTS:
            self.counts[PRODUCTS[func]] += 1
        return func(*args, **(kwargs or {}))


def unfused() -> nn.Module:
    model = tiny_vit(attn_layer=UnfusedAttention)
    for module in model.modules():
        if type(module) is UnfusedAttention:
            module.__class__ = AttentionRope
    return model


MODELS = {
    "vit": tiny_vit,
    "distilled": lambda: tiny_vit(name="deit_tiny_distilled_patch16_224"),
    "deit3": lambda: tiny_vit(name="deit3_small_patch16_224"),
    "registers": lambda: tiny_vit(reg_tokens=3),
    "average-pool": lambda: tiny_vit(class_token=False, global_pool="avg"),
    "qk-norm": lambda: tiny_vit(qk_norm=True, init_values=0.1),
    "unfused": unfused,
    "swin": tiny_swin,
    "swin-padded": lambda: tiny_swin(window_size=3),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_product_is_listed_and_quantized(name: str) -> None:
    student = build_student(expose_attention(MODELS[name]()), quantization())
    products = list_products(student)
    with torch.no_grad(), CountedProducts() as counted:
        student(images(2))
    kinds = Counter(product.kind for product in products)
    assert counted.counts["convolution"] == kinds["convolution"] == 1
    assert counted.counts["product"] == len(products) - 1
    assert kinds["query-key"] == kinds["probability-value"] > 0
    # Both operands are quantized, each quantizer is there, and none is left over.
    used = [quantizer for product in products for quantizer in product.quantizers]
    assert sorted(used) == sorted(quantizer.name for quantizer in quantizers_of(student))
    assert not [product for product in products if product.reason]


def test_what_is_left_in_floating_point_has_a_reason() -> None:
    student = build_student(expose_attention(tiny_vit()), quantization(quantize_images=False))
    student.blocks[1].mlp.fc2 = nn.Linear(192, 48)
    left = {product.name: product for product in list_products(student) if product.reason}
    assert set(left) == {"patch_embed.proj", "blocks.1.mlp.fc2"}
    embedding = left["patch_embed.proj"]
    assert embedding.quantizers == (None, "patch_embed.proj.weight_quantizer")
    assert embedding.reason == "the recipe leaves its input in floating point"
    assert left["blocks.1.mlp.fc2"].quantizers == (None, None)
    assert left["blocks.1.mlp.fc2"].reason == (
        "the recipe leaves its input and its weight in floating point"
    )


def test_a_teacher_is_not_quantized_at_all() -> None:
    products = list_products(expose_attention(tiny_swin()))
    assert len(products) == 4 * 6 + 3
    assert all(product.quantizers == (None, None) and product.reason for product in products)
