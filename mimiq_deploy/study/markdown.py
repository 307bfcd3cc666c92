"""A study as a page in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimiq_deploy.study.report import name_of_choice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimiq_deploy.study.report import StudyReport

__all__ = ["points", "render_markdown", "signed"]


def render_markdown(report: StudyReport) -> str:
    """Tables of the scores, of the method against other choices, and of the correlations.

    Args:
        report: What the study found.

    Returns:
        Markdown; scores in percent with the standard deviation over seeds behind them.
    """
    yardstick = report.yardstick
    measured = (
        f"Top-1 accuracy in % on {yardstick.images} pictures of {yardstick.origin}"
        if yardstick.score == "accuracy"
        else f"Share in % of {yardstick.images} unseen synthetic images ({yardstick.origin}) with "
        "the same top-1 as the full-precision model"
    )
    recipe = ", ".join([report.recipe, *report.settings])
    full = points(yardstick.full_precision)
    parts = [
        f"# {report.model}: study",
        f"{measured}; mean and standard deviation over seeds.",
        f"Recipe {recipe}. Full precision: {full}.",
        *(_scores(report, bits) for bits in dict.fromkeys(row.bits for row in report.rows)),
        *_comparisons(report),
        *_correlations(report),
        *_failures(report),
        f"Machine: {_listed(report.machine)}.",
        f"Libraries: {_listed(report.libraries)}.",
    ]
    return "\n\n".join(parts) + "\n"


def points(value: float | None, spread: float | None = None, *, signed: bool = False) -> str:
    """A share as percent or percentage points, with its spread where there is one."""
    if value is None:
        return "-"
    text = f"{100 * value:+.2f}" if signed else f"{100 * value:.2f}"
    return text if spread is None else f"{text} ± {100 * spread:.2f}"


def signed(correlation: float | None) -> str:
    """A correlation with its sign; a dash where it is not defined."""
    return "-" if correlation is None else f"{correlation:+.2f}"


def _scores(report: StudyReport, bits: str) -> str:
    rows = [row for row in report.rows if row.bits == bits]
    fine_tunings = list(dict.fromkeys(row.fine_tuning for row in rows))
    choices = list(dict.fromkeys((row.source, row.without) for row in rows))
    lines = []
    for choice in choices:
        mine = {row.fine_tuning: row for row in rows if (row.source, row.without) == choice}
        scores = [
            points(mine[kind].score, mine[kind].spread) if kind in mine else "-"
            for kind in fine_tunings
        ]
        any_row = next(iter(mine.values()))
        seeds = "/".join(dict.fromkeys(str(row.seeds) for row in mine.values()))
        similar = [f"{any_row.head_similarity:.3f}", f"{any_row.squared_similarity:.3f}"]
        lines.append([name_of_choice(*choice), *scores, *similar, seeds])
    head = ["images", *fine_tunings, "mean SSIM", "mean SSIM²", "seeds"]
    return f"## {bits.upper()}\n\n{_table(head, lines)}"


def _comparisons(report: StudyReport) -> list[str]:
    if not report.comparisons:
        return []
    lines = [
        [
            c.bits,
            c.fine_tuning,
            c.other,
            points(c.gain, c.spread, signed=True),
            f"{c.better} of {c.seeds}",
        ]
        for c in report.comparisons
    ]
    head = ["bits", "fine-tuning", "mimiq against", "gain in points", "seeds with a gain"]
    return ["## What the method gains", _table(head, lines)]


def _correlations(report: StudyReport) -> list[str]:
    lines = [
        [c.bits, c.fine_tuning, str(c.cells), signed(c.spearman), signed(c.spearman_squared)]
        for c in report.correlations
    ]
    head = ["bits", "fine-tuning", "cells", "of mean SSIM", "of mean SSIM²"]
    title = f"## Rank correlation of head similarity and {report.yardstick.score}"
    return [title, _table(head, lines)] if lines else []


def _failures(report: StudyReport) -> list[str]:
    failed = [f"- {cell.run}: {cell.failure}" for cell in report.cells if cell.failure]
    return ["## What failed", "\n".join(failed)] if failed else []


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _listed(facts: dict[str, str]) -> str:
    return ", ".join(f"{name} {fact}" for name, fact in facts.items())
