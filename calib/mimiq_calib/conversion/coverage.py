"""Which products of a student are quantized, and which are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mimiq_calib.conversion.attention import ExposedAttention
from mimiq_calib.conversion.layers import QuantizedConv2d, QuantizedLinear
from mimiq_calib.quantizers.quantizer import Quantizer
from mimiq_runtime.quantization_table import Product, ProductKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["list_products"]

_FLOATING_POINT = {
    nn.Linear: ProductKind.LINEAR,
    nn.Conv2d: ProductKind.CONVOLUTION,
}


def list_products(student: nn.Module) -> list[Product]:
    """Every product of matrices that a student computes, in the order of its modules.

    Args:
        student: A model with exposed attention, with or without quantizers.

    Returns:
        One row for each Linear and each convolution, two for each attention.
    """
    return [
        product
        for name, module in student.named_modules()
        for product in _products_of(name, module)
    ]


def _products_of(name: str, module: nn.Module) -> Iterator[Product]:
    if isinstance(module, QuantizedLinear | QuantizedConv2d):
        linear = isinstance(module, QuantizedLinear)
        kind = ProductKind.LINEAR if linear else ProductKind.CONVOLUTION
        operands = {"input": module.input_quantizer, "weight": module.weight_quantizer}
        yield _product(name, kind, operands)
    elif isinstance(module, ExposedAttention):
        query_key = {"query": module.query_quantizer, "key": module.key_quantizer}
        yield _product(name, ProductKind.QUERY_KEY, query_key)
        probability_value = {
            "probability": module.probability_quantizer,
            "value": module.value_quantizer,
        }
        yield _product(name, ProductKind.PROBABILITY_VALUE, probability_value)
    elif type(module) in _FLOATING_POINT:
        plain = {"input": nn.Identity(), "weight": nn.Identity()}
        yield _product(name, _FLOATING_POINT[type(module)], plain)


def _product(name: str, kind: ProductKind, operands: Mapping[str, nn.Module]) -> Product:
    left, right = (
        quantizer.name if isinstance(quantizer, Quantizer) else None
        for quantizer in operands.values()
    )
    plain = [operand for operand, name in zip(operands, (left, right), strict=True) if not name]
    reason = f"the recipe leaves its {' and its '.join(plain)} in floating point"
    return Product(name=name, kind=kind, quantizers=(left, right), reason=reason if plain else None)
