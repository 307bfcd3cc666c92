"""What every model said about every picture of a validation: ``predictions.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_runtime.errors import RunDirectoryError
from mimiq_runtime.metrics import softmax
from mimiq_runtime.schema import Schema, read_schema, reason_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["PREDICTIONS", "Answers", "PicturePredictions", "answers_of", "read_predictions"]

PREDICTIONS = "predictions.json"
"""Its place in a run directory."""


class Answers(Schema):
    """One model's answers, a row a picture.

    Attributes:
        model_sha256: Digest of the file that answered.
        top1: Class of the largest logit; None where a logit was not a number.
        probability: The model's probability of that class, 0 to 1; None where there is no class.
    """

    model_sha256: str
    top1: list[int | None]
    probability: list[float | None]


class PicturePredictions(Schema):
    """The content of ``predictions.json``; no pixel of a picture is in it.

    Attributes:
        folder: Where the pictures were.
        pictures: Paths relative to the folder, with ``/``.
        labels: Class index of each picture; None where nobody knows them.
        answers: By name of the reference or the engine, one row a picture.
    """

    folder: str
    pictures: list[str]
    labels: list[int] | None
    answers: dict[str, Answers]


def answers_of(logits: NDArray[np.floating[Any]], model_sha256: str) -> Answers:
    """Top-1 and its probability by logits (N, classes); probabilities to four digits."""
    usable = np.isfinite(logits).all(axis=1)
    probabilities = softmax(np.where(usable[:, None], logits, 0.0))
    best = probabilities.argmax(axis=1)
    shares = probabilities[np.arange(len(best)), best]
    return Answers(
        model_sha256=model_sha256,
        top1=[int(c) if ok else None for c, ok in zip(best, usable, strict=True)],
        probability=[
            round(float(p), 4) if ok else None for p, ok in zip(shares, usable, strict=True)
        ],
    )


def read_predictions(run: RunDirectory) -> PicturePredictions | None:
    """The predictions of a run; None where no pictures were validated.

    Raises:
        RunDirectoryError: The file is missing or damaged.
    """
    if PREDICTIONS not in run.manifest.files:
        return None
    path = run.existing(PREDICTIONS, made_by="mimiq-deploy validate --data")
    try:
        found = read_schema(PicturePredictions, path)
    except (OSError, ValueError) as error:
        raise RunDirectoryError(
            f"{path} is damaged: {reason_of(error)}; validate again."
        ) from error
    lengths = {len(found.pictures)}
    lengths |= set() if found.labels is None else {len(found.labels)}
    lengths |= {
        len(rows) for each in found.answers.values() for rows in (each.top1, each.probability)
    }
    if len(lengths) != 1:
        raise RunDirectoryError(
            f"{path} is damaged: its rows are not equally many; validate again."
        )
    return found
