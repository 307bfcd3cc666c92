"""``quantization.json``: one row for each quantized tensor of a run, and for each product."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from mimiq_runtime.grid import WIDEST, Grid
from mimiq_runtime.schema import Schema

__all__ = ["Product", "ProductKind", "QuantizationTable", "QuantizedTensor", "TensorKind"]


Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""The step of a grid."""


class TensorKind(StrEnum):
    """What a quantizer stands on."""

    WEIGHT = "weight"
    ACTIVATION = "activation"


class QuantizedTensor(Schema):
    """How one tensor is quantized.

    Attributes:
        name: Dotted name of the quantizer in the model, such as
            ``blocks.0.attn.qkv.weight_quantizer``. Unique in a table.
        kind: Weight or activation.
        bits: Nominal bit width, 2 to 8.
        qmin: Smallest code of the grid.
        qmax: Largest code of the grid.
        axis: The axis that has one scale a slice, or None for one scale in all.
        scale: The step of the grid: one positive number, or one for each slice along ``axis``.
        zero_point: What is added to a code to store it; 0 for every grid within the container.
        container: The integer type that stores the codes.
    """

    name: str
    kind: TensorKind
    bits: int = Field(ge=2, le=8)
    qmin: int = Field(ge=-255, le=0)
    qmax: int = Field(ge=1, le=255)
    axis: int | None
    scale: Scale | Annotated[list[Scale], Field(min_length=1)]
    zero_point: int = 0
    container: str = "int8"

    @model_validator(mode="after")
    def _codes_fit_the_container(self) -> Self:
        if self.qmax - self.qmin > WIDEST:
            raise ValueError(f"a grid spans at most {WIDEST + 1} codes")
        return self

    @property
    def grid(self) -> Grid:
        """The codes that this tensor may hold."""
        return Grid(self.qmin, self.qmax)


class ProductKind(StrEnum):
    """What computes a product of matrices."""

    LINEAR = "linear"
    CONVOLUTION = "convolution"
    QUERY_KEY = "query-key"
    PROBABILITY_VALUE = "probability-value"


class Product(Schema):
    """One product of matrices in the model: most of its arithmetic is in these.

    Attributes:
        name: Dotted name of the module that computes it.
        kind: What kind of module; an attention computes two products.
        quantizers: Names of the quantizers on its two operands; None for an operand that stays
            in floating point. An engine computes in integers only where both are quantized.
        reason: Why an operand stays in floating point; None where both are quantized.
    """

    name: str
    kind: ProductKind
    quantizers: tuple[str | None, str | None]
    reason: str | None = None


class QuantizationTable(Schema):
    """All rows of a run, in the order of the model's modules.

    Attributes:
        tensors: What is quantized, and how.
        products: Every product of the model, quantized or not; None in a table that was written
            before products were recorded.
    """

    tensors: list[QuantizedTensor]
    products: list[Product] | None = None
