"""Keeping what each model said about each picture of a validation, for the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mimiq_deploy.implementations import Reference, title_of
from mimiq_runtime.predictions import PREDICTIONS, PicturePredictions, answers_of
from mimiq_runtime.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from mimiq_deploy.comparison_data import ComparisonData
    from mimiq_runtime.run_directory import RunDirectory
    from mimiq_runtime.session import Session

__all__ = ["write_predictions"]

FULL_PRECISION = title_of(Reference.FP32, Scope.FULL)


def write_predictions(
    run: RunDirectory,
    data: ComparisonData,
    sessions: Mapping[str, Session],
    logits: Mapping[str, NDArray[np.float32]],
) -> None:
    """Write ``predictions.json``: names, labels and top-1 of each model, no pixels.

    Args:
        run: The run that was validated.
        data: Photographs, in the order of the logits. Nothing is written for other images, or
            where full precision was not among the models.
        sessions: The models by name.
        logits: Logits (N, classes) of each, by the same names.
    """
    if not data.paths or FULL_PRECISION not in logits:
        return
    folder = Path(data.record.origin)
    predictions = PicturePredictions(
        folder=str(folder),
        pictures=[path.relative_to(folder).as_posix() for path in data.paths],
        labels=None if data.labels is None else data.labels.tolist(),
        answers={
            name: answers_of(rows, sessions[name].info.model_sha256)
            for name, rows in logits.items()
        },
    )
    run.write_json(PREDICTIONS, predictions.model_dump(mode="json"))
