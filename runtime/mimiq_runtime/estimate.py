r"""What quantization costs by images without labels: ``estimate.json`` (docs/estimate.md).

Nobody knows the labels, so the full-precision model's own probabilities take their place: a
prediction y on an image is taken to be right with the probability :math:`p_y` that this model
gives it. The share of its accuracy that the quantized model keeps is then

.. math:: R = \sum_n p_n(\hat y^q_n) / \sum_n p_n(\hat y_n)

with the quantized prediction above and the full-precision one below. Where the model is sure, R is
the agreement; where it wavers, a change of mind costs less.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from mimiq_runtime.errors import InvalidInputError, RunDirectoryError
from mimiq_runtime.metrics import softmax
from mimiq_runtime.parity import LogitParity, compare_logits
from mimiq_runtime.schema import Schema, read_schema, reason_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mimiq_runtime.run_directory import RunDirectory

    Array = NDArray[np.floating[Any]]

__all__ = [
    "ESTIMATE_PATH",
    "FOLDER",
    "BlockError",
    "CostEstimate",
    "accuracy_kept",
    "accuracy_kept_interval",
    "caution",
    "estimate_from_logits",
    "read_estimate",
]

ESTIMATE_PATH = "estimate.json"
"""Its place in a run directory."""

FOLDER = "folder"
"""The one source of images that is real data."""

EXACT_BITS = 8
"""With so many bits for both, estimate and photographs agreed to two points (docs/estimate.md)."""

RESAMPLINGS = 2000
COVERAGE = 0.95


class BlockError(Schema):
    """How far the output of one block is from the full-precision model's.

    Attributes:
        block: Dotted name.
        sqnr_db: Signal-to-quantization-noise ratio in dB, all blocks before it quantized, too;
            None where it is not finite.
    """

    block: str
    sqnr_db: float | None


class CostEstimate(Schema):
    """The content of ``estimate.json``.

    Attributes:
        images: Number of held-out calibration images.
        source: Where they came from, such as ``mimiq``.
        confidence: Mean probability of the full-precision model's own predictions, 0 to 1.
        logits: The quantized model's logits compared with the full-precision model's.
        accuracy_kept: Estimated share of the full-precision top-1 accuracy that is kept, 0 to 1.
        accuracy_kept_low: Lower end of its 95 % interval, by resampling the images.
        accuracy_kept_high: Upper end. The interval knows nothing of how photographs differ from
            these images.
        blocks: Errors of the blocks, in their order.
    """

    images: int = Field(ge=1)
    source: str
    confidence: float
    logits: LogitParity
    accuracy_kept: float
    accuracy_kept_low: float
    accuracy_kept_high: float
    blocks: list[BlockError]


def caution(bits: str, source: str) -> str | None:
    """How much worse it was on photographs than estimated, in a sentence; None where it was not.

    Args:
        bits: Of the run, such as ``w4a4``. Fewer than :data:`EXACT_BITS` of the activations are
            held to be like 4, and so of the weights.
        source: Where the held-out images came from.
    """
    found = re.fullmatch(r"w(\d+)a(\d+)", bits)
    if found is None or source == FOLDER:
        return None
    weights, activations = map(int, found.groups())
    if activations < EXACT_BITS:
        measured, points = "w4a4", "15 to 40"
    elif weights < EXACT_BITS:
        measured, points = "w4a8", "3"
    else:
        return None
    return f"On photographs, DeiT-Tiny at {measured} kept {points} points less than estimated"


def read_estimate(run: RunDirectory) -> CostEstimate | None:
    """The estimate of a run; None where none was made.

    Raises:
        RunDirectoryError: The file is missing or damaged.
    """
    if ESTIMATE_PATH not in run.manifest.files:
        return None
    path = run.existing(ESTIMATE_PATH, made_by="mimiq-deploy calibrate")
    try:
        return read_schema(CostEstimate, path)
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            f"{path} is damaged: {reason_of(error)}; calibrate again."
        ) from error


def estimate_from_logits(
    reference: Array,
    quantized: Array,
    *,
    source: str,
    blocks: Mapping[str, float | None],
    seed: int,
) -> CostEstimate:
    """Estimate the cost from both models' logits of held-out images.

    Args:
        reference: Logits (N, C) of the full-precision model.
        quantized: Logits (N, C) of the quantized model.
        source: Where the images came from.
        blocks: Signal-to-quantization-noise ratio in dB by name of the block.
        seed: Of the resampling.

    Raises:
        InvalidInputError: The shapes do not fit, or nothing is given.
    """
    low, high = accuracy_kept_interval(reference, quantized, seed=seed)
    return CostEstimate(
        images=len(reference),
        source=source,
        confidence=float(softmax(reference).max(axis=1).mean()),
        logits=compare_logits(reference, quantized),
        accuracy_kept=accuracy_kept(reference, quantized),
        accuracy_kept_low=low,
        accuracy_kept_high=high,
        blocks=[BlockError(block=name, sqnr_db=value) for name, value in blocks.items()],
    )


def accuracy_kept(reference: Array, quantized: Array) -> float:
    """The share R of the module's docstring.

    Args:
        reference: Logits (N, C) of the full-precision model, finite.
        quantized: Logits (N, C) of the quantized model; a row with NaN predicts nothing.

    Returns:
        Share, 0 to 1.

    Raises:
        InvalidInputError: The shapes do not fit, nothing is given, or a reference is not finite.
    """
    own, others = _right_by_reference(reference, quantized)
    return float(others.sum() / own.sum())


def accuracy_kept_interval(reference: Array, quantized: Array, *, seed: int) -> tuple[float, float]:
    """Percentile bootstrap of R over the images: 95 % of 2,000 resamplings lie within.

    Args:
        reference: As in :func:`accuracy_kept`.
        quantized: As in :func:`accuracy_kept`.
        seed: Of the resampling.
    """
    own, others = _right_by_reference(reference, quantized)
    drawn = np.random.default_rng(seed).integers(len(own), size=(RESAMPLINGS, len(own)))
    shares = others[drawn].sum(axis=1) / own[drawn].sum(axis=1)
    low, high = np.quantile(shares, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def _right_by_reference(
    reference: Array, quantized: Array
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probability by the reference that each model's prediction is right, (N,) each."""
    if reference.ndim != 2 or reference.size == 0 or reference.shape != quantized.shape:
        raise InvalidInputError(
            "Expected logits of two models of one shape (N, classes), at least one row; got "
            f"{reference.shape} and {quantized.shape}."
        )
    if not np.isfinite(reference).all():
        raise InvalidInputError(
            "The full-precision logits hold values that are not finite; check the checkpoint."
        )
    probabilities = softmax(reference)
    rows = np.arange(len(reference))
    usable = ~np.isnan(quantized).any(axis=1)
    predicted = np.where(usable, np.argmax(np.nan_to_num(quantized), axis=1), 0)
    return probabilities.max(axis=1), np.where(usable, probabilities[rows, predicted], 0.0)
