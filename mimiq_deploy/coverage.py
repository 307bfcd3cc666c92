"""How much of a model is quantized, read off its quantization table."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from mimiq_runtime.quantization_table import Product, ProductKind
from mimiq_runtime.schema import Schema

if TYPE_CHECKING:
    from mimiq_runtime.quantization_table import QuantizationTable

__all__ = ["CoverageGroup", "summarise_coverage"]


class CoverageGroup(Schema):
    """All products of one kind.

    Attributes:
        kind: What computes them.
        products: How many the model has.
        quantized: How many of them have a quantizer on both operands.
        others: The others, each with its reason.
    """

    kind: ProductKind
    products: int
    quantized: int
    others: list[Product]


def summarise_coverage(table: QuantizationTable) -> list[CoverageGroup] | None:
    """Group the products of a model by their kind, in the order of their first.

    Returns:
        None for a table that does not list products.
    """
    if table.products is None:
        return None
    groups: dict[ProductKind, list[Product]] = defaultdict(list)
    for product in table.products:
        groups[product.kind].append(product)
    return [_group(kind, products) for kind, products in groups.items()]


def _group(kind: ProductKind, products: list[Product]) -> CoverageGroup:
    others = [product for product in products if None in product.quantizers]
    return CoverageGroup(
        kind=kind,
        products=len(products),
        quantized=len(products) - len(others),
        others=others,
    )
