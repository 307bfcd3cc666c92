"""``quantization.json``: one row for each quantized tensor of a run."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from mimiq_runtime.grid import Grid
from mimiq_runtime.schema import Schema

__all__ = ["QuantizationTable", "QuantizedTensor", "TensorKind"]


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
    qmin: int
    qmax: int
    axis: int | None
    scale: float | list[float]
    zero_point: int = 0
    container: str = "int8"

    @property
    def grid(self) -> Grid:
        """The codes that this tensor may hold."""
        return Grid(self.qmin, self.qmax)


class QuantizationTable(Schema):
    """All rows of a run, in the order of the model's modules."""

    tensors: list[QuantizedTensor]
