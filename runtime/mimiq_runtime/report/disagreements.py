"""Where the quantized model says something else than the full-precision one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mimiq_runtime.errors import ImageError, InvalidInputError
from mimiq_runtime.images import image_mode
from mimiq_runtime.predictions import read_predictions
from mimiq_runtime.report.embedding import embed_thumbnail
from mimiq_runtime.report.numbers import percent
from mimiq_runtime.report.section import (
    DataTable,
    Gallery,
    Note,
    Section,
    Thumbnail,
    missing_section,
)
from mimiq_runtime.report.shown_parity import FULL_PRECISION_REFERENCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mimiq_runtime.predictions import PicturePredictions
    from mimiq_runtime.report.section import Part
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["Disagreement", "disagreements_of", "disagreements_section"]

NAME, TITLE = "disagreements", "Disagreements"

THUMBNAILS = 24
PAIRS = 20


@dataclass(frozen=True)
class Disagreement:
    """One picture that the two models see differently.

    Attributes:
        picture: Path relative to the folder.
        label: Its class; None where nobody knows it.
        exact: What the full-precision model says; None where that was not a number.
        other: What the quantized model says; None where that was not a number.
        confidence: The full-precision model's probability of its answer, 0 to 1.
        other_confidence: The quantized model's of its own.
    """

    picture: str
    label: int | None
    exact: int | None
    other: int | None
    confidence: float | None
    other_confidence: float | None


def disagreements_of(predictions: PicturePredictions, engine: str) -> list[Disagreement]:
    """Pictures with different answers, those first of which the full-precision model was surest."""
    exact, other = predictions.answers[FULL_PRECISION_REFERENCE], predictions.answers[engine]
    unlabelled: list[int | None] = [None] * len(predictions.pictures)
    rows = [
        Disagreement(picture, label, *answers)
        for picture, label, *answers in zip(
            predictions.pictures,
            predictions.labels or unlabelled,
            exact.top1,
            other.top1,
            exact.probability,
            other.probability,
            strict=True,
        )
    ]
    # What is not a number agrees with nothing.
    apart = [row for row in rows if row.exact is None or row.exact != row.other]
    return sorted(apart, key=lambda row: -(row.confidence or 0.0))


def disagreements_section(run: RunDirectory, data: Path | None) -> Section:
    """Confusion of the two models' answers, with thumbnails where the pictures are given.

    Args:
        run: The run.
        data: Folder of the pictures that were validated; None leaves them out of the page.
    """
    predictions = read_predictions(run)
    engines = [] if predictions is None else _engines(predictions)
    if predictions is None or not engines:
        return missing_section(
            NAME,
            TITLE,
            "No answers to pictures were recorded.",
            f"mimiq-deploy validate {run.root} --data FOLDER",
        )
    parts: list[Part] = []
    for engine in engines:
        parts += _parts(run, predictions, engine, data)
    parts += _stale(run, predictions, engines)
    return Section(
        name=NAME,
        title=TITLE,
        intro=f"Pictures of {len(predictions.pictures)} whose top-1 is another one than in full "
        "precision; those first of which the full-precision model was surest.",
        parts=parts,
    )


def _engines(predictions: PicturePredictions) -> list[str]:
    """What ran in an engine: references of torch are not what is deployed."""
    if FULL_PRECISION_REFERENCE not in predictions.answers:
        return []
    return [
        name
        for name in predictions.answers
        if name != FULL_PRECISION_REFERENCE and not name.startswith("fake-quantized")
    ]


def _parts(
    run: RunDirectory, predictions: PicturePredictions, engine: str, data: Path | None
) -> Iterator[Part]:
    rows = disagreements_of(predictions, engine)
    count = len(predictions.pictures)
    yield Note(
        f"{engine}: {len(rows)} of {count} pictures ({percent(len(rows) / count)}) are answered "
        "differently."
    )
    if not rows:
        return
    names = run.manifest.model.labels
    if predictions.labels is not None:
        yield DataTable(
            ("", "pictures"),
            [(what, str(number)) for what, number in _who_is_right(rows)],
            f"Who is right where {engine} disagrees",
        )
    pairs = Counter((row.exact, row.other) for row in rows)
    yield DataTable(
        ("full precision says", f"{engine} says", "pictures"),
        [
            (_class(exact, names), _class(other, names), str(number))
            for (exact, other), number in pairs.most_common(PAIRS)
        ],
        "What is taken for what"
        + (f"; the {PAIRS} most frequent of {len(pairs)} pairs" if len(pairs) > PAIRS else ""),
        words=2,
    )
    if data is None:
        yield Note(
            "Photographs come into the page only when asked for: mimiq-deploy report "
            f"{run.root} --data {predictions.folder}"
        )
    else:
        yield from _gallery(run, rows, engine, data)
    yield DataTable(
        ("picture", "label", "full precision", engine),
        [
            (
                row.picture,
                "-" if row.label is None else _class(row.label, names),
                _answer(row.exact, row.confidence, names),
                _answer(row.other, row.other_confidence, names),
            )
            for row in rows
        ],
        "All of them",
        words=4,
        folded=True,
    )


def _gallery(
    run: RunDirectory, rows: Sequence[Disagreement], engine: str, data: Path
) -> Iterator[Part]:
    names = run.manifest.model.labels
    channels = run.manifest.preprocessing.input_size[0]
    try:
        image_mode(channels)
    except InvalidInputError as error:
        yield Note(str(error), warning=True)
        return
    thumbnails, lost = [], []
    for row in rows[:THUMBNAILS]:
        try:
            source = embed_thumbnail(_inside(data, row.picture), channels=channels)
        except ImageError as error:
            lost.append(str(error))
            continue
        lines = (
            f"full precision: {_answer(row.exact, row.confidence, names)}",
            f"{engine}: {_answer(row.other, row.other_confidence, names)}",
        )
        known = f"label: {_class(row.label, names)}" if row.label is not None else row.picture
        thumbnails.append(Thumbnail(source, known, lines))
    if thumbnails:
        of = f"The first {len(thumbnails)} of {len(rows)}." if len(rows) > len(thumbnails) else ""
        yield Gallery(thumbnails, of)
    if lost:
        yield Note(f"{len(lost)} pictures could not be read: {lost[0]}", warning=True)


def _inside(data: Path, picture: str) -> Path:
    """The file of a picture; a record that was changed by hand must not lead out of the folder."""
    path = data / picture
    if not path.resolve().is_relative_to(data.resolve()):
        raise ImageError(f"{picture} lies outside {data}; validate again.")
    return path


def _stale(
    run: RunDirectory, predictions: PicturePredictions, engines: Sequence[str]
) -> Iterator[Note]:
    """Say where the export has changed since the answers were recorded."""
    digests = {record.sha256 for record in run.manifest.files.values()}
    old = [name for name in engines if predictions.answers[name].model_sha256 not in digests]
    if old:
        yield Note(
            f"The model of {', '.join(old)} has changed since; run mimiq-deploy validate "
            f"{run.root} --data FOLDER again.",
            warning=True,
        )


def _who_is_right(rows: Sequence[Disagreement]) -> list[tuple[str, int]]:
    exact = sum(row.exact == row.label for row in rows)
    other = sum(row.other == row.label for row in rows)
    return [
        ("only full precision is right", exact),
        ("only the quantized model is right", other),
        ("neither is right", len(rows) - exact - other),
    ]


def _class(index: int | None, names: Sequence[str] | None) -> str:
    if index is None:
        return "not a number"
    known = names is not None and 0 <= index < len(names)
    return names[index] if known and names is not None else str(index)


def _answer(index: int | None, share: float | None, names: Sequence[str] | None) -> str:
    name = _class(index, names)
    return name if share is None else f"{name} ({percent(share, 0)})"
