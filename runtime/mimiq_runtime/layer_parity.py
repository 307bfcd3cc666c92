"""Where two implementations of one model part: their quantized tensors, one after the other."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from mimiq_runtime.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "IMAGES",
    "LOGITS",
    "PREPROCESSING",
    "FirstFault",
    "LayerReport",
    "LayerRow",
    "LayerSums",
    "QuantizedValues",
    "align_layout",
    "find_first_fault",
]

IMAGES, LOGITS = "images", "logits"
"""Names of the tensors at both ends of the model, which have no quantizer."""

PREPROCESSING = "preprocessing"
"""What makes the images."""

_SAME_SCALE = 1e-6
"""Scales are copied in single precision; more than its rounding apart, they are two scales."""

_FEW_FLIPS = 1 / 5000
"""Up to this share of codes may differ at any noise: in a small tensor one flip is much noise."""


@dataclass(frozen=True, eq=False)
class QuantizedValues:
    """A quantized tensor.

    Attributes:
        codes: Whole numbers of any type and shape, without a zero point.
        scale: The step of the grid.
    """

    codes: NDArray[Any]
    scale: float

    @property
    def values(self) -> NDArray[np.float64]:
        """``codes * scale``."""
        return self.codes.astype(np.float64) * self.scale


class LayerRow(Schema):
    """One tensor, compared.

    Attributes:
        name: The quantizer whose output it is, or :data:`IMAGES` or :data:`LOGITS`.
        made_by: The layer whose product is the last one before it.
        n: Number of elements.
        sqnr_db: Signal-to-quantization-noise ratio of the dequantized values in dB; None where
            all are equal, and where one is not a number.
        equal: Share of elements with the same code, 0 to 1; of equal numbers for images and
            logits.
        scale_ratio: The engine's scale over the reference's; None for images and logits.
    """

    name: str
    made_by: str
    n: int = Field(ge=1)
    sqnr_db: float | None
    equal: float = Field(ge=0, le=1)
    scale_ratio: float | None = None

    @property
    def has_own_scale(self) -> bool:
        """Whether the scales of both sides are two numbers."""
        return self.scale_ratio is not None and abs(self.scale_ratio - 1) > _SAME_SCALE

    def parts(self, threshold_db: float) -> bool:
        """Whether the two sides part here: too much noise, or two scales."""
        if self.has_own_scale:
            return True
        if self.sqnr_db is None:
            return self.equal < 1
        few = self.scale_ratio is not None and 1 - self.equal <= _FEW_FLIPS
        return self.sqnr_db < threshold_db and not few


class FirstFault(Schema):
    """The first tensor where two implementations part.

    Attributes:
        tensor: Name of its row.
        layer: The layer to look at.
        reason: What is seen, in one sentence.
    """

    tensor: str
    layer: str
    reason: str


class LayerReport(Schema):
    """An engine and a reference, compared tensor by tensor.

    Attributes:
        against: The reference.
        images: Number of images.
        stepwise: Whether the reference got the engine's codes at each quantizer, so that a row
            shows what this step alone does. Otherwise differences add up from row to row.
        undisturbed: Share of images with the same logits whether or not tensors are read, 0 to 1.
            Below 1, reading them made the engine compute in another way.
        threshold_db: Two sides part below this SQNR, if more than a few codes differ.
        rows: In the order of the network.
        not_compared: Quantizers of the reference that the engine does not have.
        first: Where they part; None where they do not.
    """

    against: str
    images: int
    stepwise: bool
    undisturbed: float
    threshold_db: float
    rows: list[LayerRow]
    not_compared: list[str]
    first: FirstFault | None

    def sentences(self) -> list[str]:
        """What the rows say, and what they do not."""
        quantizers = sum(row.scale_ratio is not None for row in self.rows)
        said = [f"{quantizers} quantizers were compared with {self.against}."]
        if self.first is None:
            said.append(f"They part nowhere: no tensor is below {self.threshold_db:g} dB.")
        else:
            said.append(f"Look at {self.first.layer}: {self.first.reason}.")
        if not self.stepwise:
            said.append("Differences add up from row to row; only the first says where to look.")
        if self.not_compared:
            said.append(
                f"{len(self.not_compared)} are not on both sides, or in layouts that do not fit, "
                f"such as {self.not_compared[0]}."
            )
        if self.undisturbed < 1:
            said.append(
                f"Reading tensors changed the engine's answers to "
                f"{100 * (1 - self.undisturbed):.1f} % of the images."
            )
        return said


class LayerSums:
    """Sums over batches, from which a row is made.

    Args:
        name: As in :class:`LayerRow`.
        made_by: As in :class:`LayerRow`.
    """

    def __init__(self, name: str, made_by: str) -> None:
        self._name = name
        self._made_by = made_by
        self._n = self._equal = 0
        self._signal = self._noise = 0.0
        self._scale_ratio: float | None = None

    def add_codes(self, reference: QuantizedValues, other: QuantizedValues) -> None:
        """Count a batch of a quantized tensor; both sides have one shape."""
        self._scale_ratio = other.scale / reference.scale
        self._add(reference.values, other.values, reference.codes == other.codes)

    def add_numbers(self, reference: NDArray[Any], other: NDArray[Any]) -> None:
        """Count a batch of a tensor in floating point; both sides have one shape."""
        self._add(reference.astype(np.float64), other.astype(np.float64), reference == other)

    def _add(
        self, reference: NDArray[np.float64], other: NDArray[np.float64], equal: NDArray[np.bool_]
    ) -> None:
        with np.errstate(invalid="ignore"):
            self._noise += float(np.square(reference - other).sum())
            self._signal += float(np.square(reference).sum())
        self._n += equal.size
        self._equal += int(np.count_nonzero(equal))

    def row(self) -> LayerRow:
        """The row of all batches so far, of which there is at least one."""
        return LayerRow(
            name=self._name,
            made_by=self._made_by,
            n=self._n,
            sqnr_db=self._sqnr_db(),
            equal=self._equal / self._n,
            scale_ratio=self._scale_ratio,
        )

    def _sqnr_db(self) -> float | None:
        if not (self._signal > 0 and self._noise > 0 and math.isfinite(self._signal + self._noise)):
            return None
        return 10 * (math.log10(self._signal) - math.log10(self._noise))


def align_layout(tensor: NDArray[Any], like: NDArray[Any]) -> NDArray[Any] | None:
    """Bring a tensor into the layout that another implementation has it in.

    Exports turn keys before they are quantized, and cut the picture into patches. Elements are
    moved, none is changed.

    1. An order of the axes behind the first that gives the shape of ``like``. Where several do,
       the one with the most equal elements.
    2. Patches (batch, patches, channels * size * size) become the picture
       (batch, channels, rows * size, columns * size).

    Args:
        tensor: Codes of one side, its batch first.
        like: Codes of the other side.

    Returns:
        The elements of ``tensor`` in the shape of ``like``; None where neither rule fits.
    """
    if tensor.size != like.size:
        return None
    if tensor.ndim != like.ndim:
        return _picture_of_patches(tensor, like.shape)
    orders = itertools.permutations(range(1, tensor.ndim))
    turned = [tensor.transpose(0, *order) for order in orders]
    fitting = [view for view in turned if view.shape == like.shape]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    return max(fitting, key=lambda view: np.count_nonzero(view == like))


def _picture_of_patches(patches: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any] | None:
    if patches.ndim != 3 or len(shape) != 4:
        return None
    batch, channels, height, width = shape
    size = math.isqrt(patches.shape[2] // channels)
    cut = (height // size, width // size) if size else (0, 0)
    if (batch, cut[0] * cut[1], channels * size * size) != patches.shape:
        return None
    split = patches.reshape(batch, *cut, channels, size, size)
    return split.transpose(0, 3, 1, 4, 2, 5).reshape(shape)


def find_first_fault(rows: Sequence[LayerRow], threshold_db: float) -> FirstFault | None:
    """The first row where both sides part, and the layer that it speaks of."""
    for row in rows:
        if not row.parts(threshold_db):
            continue
        if row.has_own_scale and row.scale_ratio is not None:
            return FirstFault(
                tensor=row.name,
                layer=row.name.rpartition(".")[0],
                reason=f"the scale of {row.name} is {row.scale_ratio:.4g} times the reference's",
            )
        noise = "not a number" if row.sqnr_db is None else f"an SQNR of {row.sqnr_db:.1f} dB"
        return FirstFault(
            tensor=row.name,
            layer=row.made_by,
            reason=(
                f"{row.name}, made by {row.made_by}, is the first tensor below "
                f"{threshold_db:g} dB: {noise}, {100 * row.equal:.2f} % of its elements equal"
            ),
        )
    return None
