"""What the quantized model does differently inside: ``inside/`` of a run (docs/report.md).

Measured where torch is, read where it is not. The attention maps lie beside the record as
safetensors; the record is written last and names the weights that both were measured with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mimiq_runtime.errors import RunDirectoryError
from mimiq_runtime.run_images import check_pixels
from mimiq_runtime.schema import Schema, read_schema, reason_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mimiq_runtime.run_directory import RunDirectory

__all__ = [
    "FULL_PRECISION",
    "INSIDE_ATTENTION",
    "INSIDE_RECORD",
    "QUANTIZED",
    "AttentionMaps",
    "InsideRecord",
    "LayerError",
    "LayerKind",
    "read_attention_maps",
    "read_inside_record",
]

INSIDE_RECORD = "inside/layers.json"
INSIDE_ATTENTION = "inside/attention.safetensors"

FULL_PRECISION = "full-precision/"
QUANTIZED = "quantized/"
"""Before the name of a layer, in the tensors of :data:`INSIDE_ATTENTION`."""

MADE_BY = "mimiq-deploy report"

LayerKind = Literal["linear", "convolution", "attention"]
"""What computes: an attention is its two products."""


class LayerError(Schema):
    """What quantization does to the output of one layer.

    Attributes:
        layer: Dotted name.
        kind: See :data:`LayerKind`.
        own_db: Signal-to-quantization-noise ratio in dB of the output when only this layer's
            operands are quantized, with the input that it gets in the quantized model; None where
            it is not finite.
        total_db: The same against the full-precision model, all layers before it quantized, too;
            None where it is not finite, or the tensor is another one in both models.
    """

    layer: str
    kind: LayerKind
    own_db: float | None
    total_db: float | None


class InsideRecord(Schema):
    """The content of ``inside/layers.json``.

    Attributes:
        quantized_sha256: Digest of the ``quantized.safetensors`` that was measured.
        images: Number of images that the errors are over.
        source: Where the images came from, such as ``held-out images (mimiq)``.
        query: Whose attention the maps show.
        attention: Layers that have maps, in their order; empty where none could be drawn.
        layers: Errors, in the order in which the layers run.
    """

    quantized_sha256: str
    images: int = Field(ge=1)
    source: str
    query: str
    attention: list[str]
    layers: list[LayerError]


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention maps of both models for the same images.

    Attributes:
        images: uint8 pixels, ``(n, channels, height, width)``.
        full_precision: By layer, ``(n, rows, columns)``: share of the attention each place gets.
        quantized: The same of the quantized model.
    """

    images: NDArray[np.uint8]
    full_precision: dict[str, NDArray[np.float32]]
    quantized: dict[str, NDArray[np.float32]]


def read_inside_record(run: RunDirectory) -> InsideRecord | None:
    """The record of a run; None where none was made of today's quantized weights.

    Raises:
        RunDirectoryError: The file is missing or damaged.
    """
    weights = run.manifest.files.get(run.QUANTIZED)
    if INSIDE_RECORD not in run.manifest.files or weights is None:
        return None
    path = run.existing(INSIDE_RECORD, made_by=MADE_BY)
    try:
        record = read_schema(InsideRecord, path)
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            f"{path} is damaged: {reason_of(error)}; delete it and run {MADE_BY} again."
        ) from error
    return record if record.quantized_sha256 == weights.sha256 else None


def read_attention_maps(run: RunDirectory, record: InsideRecord) -> AttentionMaps:
    """The maps that belong to a record.

    Raises:
        RunDirectoryError: The file is missing, damaged or does not fit the record.
    """
    tensors = run.read_tensors(INSIDE_ATTENTION, made_by=MADE_BY)
    try:
        maps = AttentionMaps(
            images=tensors["images"],
            full_precision={name: tensors[FULL_PRECISION + name] for name in record.attention},
            quantized={name: tensors[QUANTIZED + name] for name in record.attention},
        )
    except KeyError as error:
        raise RunDirectoryError(
            f"{run.path(INSIDE_ATTENTION)} is damaged: it has no tensor {error}; delete "
            f"{run.path(INSIDE_RECORD)} and run {MADE_BY} again."
        ) from error
    check_pixels(run, INSIDE_ATTENTION, maps.images)
    return maps
