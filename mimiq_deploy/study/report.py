"""What a study found: its cells, their means over seeds, comparisons and correlations."""

from __future__ import annotations

from statistics import mean, stdev
from typing import TYPE_CHECKING

import numpy as np

from mimiq_deploy.study.grid import METHOD
from mimiq_runtime.rank_correlation import spearman
from mimiq_runtime.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "CellResult",
    "Comparison",
    "Correlation",
    "StudyReport",
    "StudyRow",
    "Yardstick",
    "compare_with_method",
    "correlate",
    "name_of_choice",
    "summarise",
]


class Yardstick(Schema):
    """What the cells were measured on.

    Attributes:
        score: ``accuracy``: share of labelled pictures classified right; ``agreement``: share of
            unseen synthetic images with the same top-1 as the full-precision model.
        images: How many.
        origin: The folder of pictures, or the sources of the synthetic images.
        full_precision: Score of the full-precision model.
        sha256: Digest of all that decides a score but the quantized model.
    """

    score: str
    images: int
    origin: str
    full_precision: float
    sha256: str


class CellResult(Schema):
    """One cell.

    Attributes:
        bits: Such as ``w4a4``.
        source: Where its images came from.
        fine_tuning: How its model was trained.
        without: The loss that was taken away, or None.
        seed: Seed of every random choice.
        run: Its run directory, relative to the study.
        score: Accuracy or agreement, 0 to 1; None where the cell failed.
        agreement: Share of the same images with the same top-1 as full precision, 0 to 1.
        kl: Divergence of its probabilities from those of full precision, in nats.
        head_similarity: Of its calibration images: mean SSIM of two heads' maps, -1 to 1.
        squared_similarity: Mean of the squared SSIM, 0 to 1: what the method's loss raises.
        seconds: Time of its stages; images that another cell made are not in it.
        failure: Why it failed, in a sentence; None where it did not.
    """

    bits: str
    source: str
    fine_tuning: str
    without: str | None
    seed: int
    run: str
    score: float | None = None
    agreement: float | None = None
    kl: float | None = None
    head_similarity: float | None = None
    squared_similarity: float | None = None
    seconds: float = 0.0
    failure: str | None = None


class StudyRow(Schema):
    """Cells that differ in their seed only.

    Attributes:
        bits: Such as ``w4a4``.
        source: Where their images came from.
        fine_tuning: How their models were trained.
        without: The loss that was taken away, or None.
        seeds: How many of them were measured.
        score: Mean score, 0 to 1.
        spread: Standard deviation over the seeds (n - 1); None for one.
        head_similarity: Mean of their images' head similarity.
        squared_similarity: Mean of their images' squared similarity.
    """

    bits: str
    source: str
    fine_tuning: str
    without: str | None
    seeds: int
    score: float
    spread: float | None
    head_similarity: float
    squared_similarity: float


class Comparison(Schema):
    """The method against another choice, seed by seed.

    Attributes:
        bits: Such as ``w4a4``.
        fine_tuning: How the models were trained.
        other: Another source, or ``mimiq without`` one of its losses.
        gain: Mean of the method's score minus the other's, of the same seed; -1 to 1.
        spread: Standard deviation of these differences (n - 1); None for one.
        better: In how many seeds the method scored higher.
        seeds: How many seeds both have.
    """

    bits: str
    fine_tuning: str
    other: str
    gain: float
    spread: float | None
    better: int
    seeds: int


class Correlation(Schema):
    """Head similarity of the images against the score, over cells of all sources and seeds.

    Attributes:
        bits: Such as ``w4a4``.
        fine_tuning: How the models were trained.
        cells: Number of points.
        spearman: Rank correlation with the mean SSIM, -1 to 1; None where it is not defined.
        spearman_squared: That with the mean of the squared SSIM.
    """

    bits: str
    fine_tuning: str
    cells: int
    spearman: float | None
    spearman_squared: float | None


class StudyReport(Schema):
    """The content of ``study.json``.

    Attributes:
        model: timm's name of the model.
        recipe: Name or file of the recipe that all cells started from.
        settings: Changes to it for all cells.
        yardstick: What was measured on.
        cells: Every cell.
        rows: Their means over seeds.
        comparisons: The method against the other choices.
        correlations: Head similarity against score.
        machine: Where it was measured.
        libraries: By which versions.
    """

    model: str
    recipe: str
    settings: list[str]
    yardstick: Yardstick
    cells: list[CellResult]
    rows: list[StudyRow]
    comparisons: list[Comparison]
    correlations: list[Correlation]
    machine: dict[str, str]
    libraries: dict[str, str]


def summarise(cells: Sequence[CellResult]) -> list[StudyRow]:
    """Means over seeds of all cells that were measured, in the order of the cells."""
    rows = []
    for group in _groups(cells, lambda c: (c.bits, c.source, c.fine_tuning, c.without)):
        scores = [cell.score for cell in group if cell.score is not None]
        first = group[0]
        rows.append(
            StudyRow(
                bits=first.bits,
                source=first.source,
                fine_tuning=first.fine_tuning,
                without=first.without,
                seeds=len(scores),
                score=mean(scores),
                spread=_spread(scores),
                head_similarity=mean(c.head_similarity or 0.0 for c in group),
                squared_similarity=mean(c.squared_similarity or 0.0 for c in group),
            )
        )
    return rows


def compare_with_method(cells: Sequence[CellResult]) -> list[Comparison]:
    """The method with both losses against every other choice, where seeds are the same."""
    comparisons = []
    for group in _groups(cells, lambda c: (c.bits, c.fine_tuning)):
        ours = {
            c.seed: c.score
            for c in group
            if c.source == METHOD and c.without is None and c.score is not None
        }
        others = [c for c in group if c.source != METHOD or c.without]
        for rivals in _groups(others, lambda c: (c.source, c.without)):
            gains = [
                ours[c.seed] - c.score for c in rivals if c.seed in ours and c.score is not None
            ]
            if not gains:
                continue
            first = rivals[0]
            comparisons.append(
                Comparison(
                    bits=first.bits,
                    fine_tuning=first.fine_tuning,
                    other=name_of_choice(first.source, first.without),
                    gain=mean(gains),
                    spread=_spread(gains),
                    better=sum(gain > 0 for gain in gains),
                    seeds=len(gains),
                )
            )
    return comparisons


def correlate(cells: Sequence[CellResult]) -> list[Correlation]:
    """Rank correlation of head similarity and score, for each width and fine-tuning.

    Cells without the structural loss are left out: they differ from others in their training, not
    in their images.
    """
    correlations = []
    alike = [cell for cell in cells if cell.without != "structure"]
    for group in _groups(alike, lambda c: (c.bits, c.fine_tuning)):
        found = [(c.head_similarity, c.squared_similarity, c.score) for c in group]
        similarities, squares, scores = np.array(found, dtype=np.float64).T
        correlations.append(
            Correlation(
                bits=group[0].bits,
                fine_tuning=group[0].fine_tuning,
                cells=len(group),
                spearman=spearman(similarities, scores),
                spearman_squared=spearman(squares, scores),
            )
        )
    return correlations


def name_of_choice(source: str, without: str | None) -> str:
    """A source, and what was taken from it, in words."""
    return f"{source} without {without}" if without else source


def _groups(
    cells: Sequence[CellResult], key: Callable[[CellResult], tuple[str | None, ...]]
) -> list[list[CellResult]]:
    """Measured cells with equal keys, in the order in which the keys first appear."""
    groups: dict[tuple[str | None, ...], list[CellResult]] = {}
    for cell in cells:
        if cell.failure is None:
            groups.setdefault(key(cell), []).append(cell)
    return list(groups.values())


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None
