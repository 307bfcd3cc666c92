"""``evaluation.json``: how good the run of a study's cell is, for the study and for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mimiq_runtime.errors import RunDirectoryError
from mimiq_runtime.schema import Schema, read_schema, reason_of

if TYPE_CHECKING:
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["EVALUATION", "Evaluation", "read_evaluation"]

EVALUATION = "evaluation.json"


class Evaluation(Schema):
    """The content of ``evaluation.json``.

    Attributes:
        yardstick: Digest of what it was measured on.
        score: Accuracy or agreement, 0 to 1.
        agreement: Share of images with the same top-1 as full precision, 0 to 1.
        kl: Divergence from full precision in nats; None where a logit is not finite.
        head_similarity: Of the run's calibration images: mean SSIM, -1 to 1.
        squared_similarity: The same of the squared SSIM, 0 to 1.
    """

    yardstick: str
    score: float = Field(ge=0, le=1)
    agreement: float = Field(ge=0, le=1)
    kl: float | None
    # A sum of roundings may lie beside its limits by the last digits.
    head_similarity: float = Field(ge=-1.001, le=1.001)
    squared_similarity: float = Field(ge=-0.001, le=1.001)


def read_evaluation(run: RunDirectory) -> Evaluation | None:
    """The evaluation of a run; None where no study measured it.

    Raises:
        RunDirectoryError: The file is missing or damaged.
    """
    path = run.finished(EVALUATION, made_by="mimiq-deploy study")
    if path is None:
        return None
    try:
        return read_schema(Evaluation, path)
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            f"{path} is damaged: {reason_of(error)}; run the study again."
        ) from error
