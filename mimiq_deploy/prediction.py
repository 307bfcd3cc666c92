"""Classifying pictures with the exported model of a run, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mimiq_deploy.engine_models import engine_model
from mimiq_runtime.errors import EngineError, RunDirectoryError
from mimiq_runtime.metrics import softmax
from mimiq_runtime.preprocessing import model_input, read_pixels
from mimiq_runtime.ranking import best_classes
from mimiq_runtime.schema import Schema
from mimiq_runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["ImagePrediction", "ScoredClass", "predict_files"]

_BATCH_SIZE = 16


class ScoredClass(Schema):
    """One class that a picture may show.

    Attributes:
        index: The class index.
        label: Its name, or None when the run knows no names.
        probability: The model's probability, 0 to 1.
    """

    index: int
    label: str | None
    probability: float


class ImagePrediction(Schema):
    """What the model says about one picture.

    Attributes:
        image: The file as it was given.
        top: The most probable classes, best first.
    """

    image: str
    top: list[ScoredClass]


def predict_files(
    run: RunDirectory,
    images: Sequence[Path],
    *,
    engine: str = "ort-cpu",
    top: int = 5,
    advance: Callable[[int], None] = lambda steps: None,
) -> list[ImagePrediction]:
    """Classify pictures with the model of a run that was exported for an engine.

    Args:
        run: The run; its preprocessing and its class names are used.
        images: The pictures.
        engine: One of :func:`mimiq_runtime.session.known_engines`.
        top: How many classes a picture; all of them where the model has fewer.
        advance: Called with the number of pictures whenever a batch is done.

    Returns:
        One prediction a picture, in the order of ``images``.

    Raises:
        RunDirectoryError: The model was never exported for this engine, or is not the model that
            ``run.json`` describes.
        ImageError: A picture cannot be read.
        MissingDependencyError: The engine's library is not installed.
        OnnxModelError: The exported model is damaged.
        EngineError: The engine failed, or gave values that are not numbers.
    """
    model = engine_model(run, engine)
    preprocessing = run.manifest.preprocessing
    predictions: list[ImagePrediction] = []
    with open_session(engine, model) as session:
        batch_size = session.info.input_shape[0] or _BATCH_SIZE
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            pixels = read_pixels(batch, preprocessing)
            logits = session.run(model_input(pixels, preprocessing, session.info.takes))
            _check_logits(model, logits, run.manifest.model.num_classes)
            rows = softmax(logits)
            labels = run.manifest.model.labels
            predictions += [
                ImagePrediction(image=str(path), top=_best(row, labels, top))
                for path, row in zip(batch, rows, strict=True)
            ]
            advance(len(batch))
    return predictions


def _check_logits(model: Path, logits: NDArray[np.float32], classes: int) -> None:
    if logits.shape[1] != classes:
        raise RunDirectoryError(
            f"run.json expects a model with {classes} classes, and {model} gives "
            f"{logits.shape[1]}; export the run again."
        )
    if not np.isfinite(logits).all():
        raise EngineError(
            f"{model} gives values that are not finite numbers; the run or its export is broken."
        )


def _best(
    probabilities: NDArray[np.float64], labels: Sequence[str] | None, top: int
) -> list[ScoredClass]:
    return [
        ScoredClass(
            index=index,
            # A list of names that is too short must not hide the answer.
            label=labels[index] if labels is not None and index < len(labels) else None,
            probability=probability,
        )
        for index, probability in best_classes(probabilities, top)
    ]
