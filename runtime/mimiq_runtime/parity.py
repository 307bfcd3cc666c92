"""Whether two implementations of one model give the same logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mimiq_runtime.metrics import (
    agreement,
    kl_divergence,
    max_abs_error,
    mean_abs_error,
    sqnr_db,
    topk_overlap,
)
from mimiq_runtime.schema import Schema

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LogitParity", "compare_logits"]


class LogitParity(Schema):
    """How far two sets of logits are apart; everything has a JSON form.

    JSON has no infinity and no NaN, so that a measure without a finite value is None. For
    ``sqnr_db`` that is the best case: the logits are identical, the ratio is infinite, and
    ``max_abs_error`` is 0 (see :attr:`identical`). In any other case None is bad news: a logit
    was NaN or infinite, or the reference was zero everywhere.

    Attributes:
        n: Number of rows that were compared.
        agreement: Share of rows with the same top-1, 0 to 1; a row with NaN disagrees.
        top5_overlap: Mean share of the five largest logits in common, 0 to 1.
        sqnr_db: Signal-to-quantization-noise ratio over all logits in dB, or None.
        kl: Mean Kullback-Leibler divergence from the reference in nats, or None.
        max_abs_error: Largest distance between two logits, or None.
        mean_abs_error: Mean distance between two logits, or None.
    """

    n: int = Field(ge=1)
    agreement: float = Field(ge=0, le=1)
    top5_overlap: float = Field(ge=0, le=1)
    sqnr_db: float | None
    kl: float | None
    max_abs_error: float | None
    mean_abs_error: float | None

    @property
    def identical(self) -> bool:
        """Whether every logit is the same number."""
        return self.max_abs_error == 0


def compare_logits(
    reference: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]
) -> LogitParity:
    """Compare logits of the same images.

    Args:
        reference: Logits (N, C) of what is taken for right.
        other: Logits (N, C) of what is examined.

    Raises:
        InvalidInputError: The shapes do not fit, or nothing is given.
    """
    return LogitParity(
        n=len(reference),
        agreement=agreement(reference, other),
        top5_overlap=topk_overlap(reference, other, k=5),
        sqnr_db=_finite(sqnr_db(reference, other)),
        kl=_finite(kl_divergence(reference, other)),
        max_abs_error=_finite(max_abs_error(reference, other)),
        mean_abs_error=_finite(mean_abs_error(reference, other)),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
