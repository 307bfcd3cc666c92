"""Which products of a model are quantized."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["ATTENTION_QUANTIZERS", "Scope"]

ATTENTION_QUANTIZERS = frozenset(
    {"query_quantizer", "key_quantizer", "probability_quantizer", "value_quantizer"}
)
"""Last parts of the names of quantizers on operands of the attention's own two products."""


class Scope(StrEnum):
    """Which products an export quantizes.

    ``linear``: Linear layers and convolutions, which have weights. ``full``: the products of two
    activations inside attention, too.
    """

    LINEAR = "linear"
    FULL = "full"
