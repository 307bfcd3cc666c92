"""A study as a picture: scores of each choice, and head similarity against score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mimiq_deploy.study.markdown import signed
from mimiq_deploy.study.report import name_of_choice
from mimiq_runtime.atomic import atomic_path
from mimiq_runtime.errors import MissingDependencyError

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_deploy.study.report import CellResult, StudyReport

__all__ = ["plot_study"]

# Colours that stay apart for colour-blind eyes (Okabe and Ito).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MEASURES = {
    "head_similarity": ("spearman", "head similarity of the images: mean SSIM"),
    "squared_similarity": ("spearman_squared", "mean SSIM², which the loss of the method raises"),
}
"""A cell's measure, its correlation in the report, and what it is called."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def plot_study(report: StudyReport, path: Path) -> None:
    """Draw one column a bit width: scores by images, and two measures of head similarity below.

    Args:
        report: What the study found.
        path: The PNG to write.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError("matplotlib", extra="report") from error

    widths = list(dict.fromkeys(row.bits for row in report.rows))
    figure = Figure(figsize=(5.4 * len(widths), 11), layout="constrained")
    axes = figure.subplots(3, len(widths), squeeze=False)
    for column, bits in enumerate(widths):
        cells = [cell for cell in report.cells if cell.bits == bits and cell.score is not None]
        _draw_scores(axes[0, column], cells, report)
        for row, measure in enumerate(MEASURES, start=1):
            _draw_similarity(axes[row, column], cells, report, measure)
        axes[0, column].set_title(bits.upper())
    figure.suptitle(f"{report.model}, recipe {report.recipe}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _draw_scores(axis: Any, cells: list[CellResult], report: StudyReport) -> None:
    choices = _choices(report)
    kinds = _fine_tunings(report)
    width = 0.8 / len(kinds)
    for number, kind in enumerate(kinds):
        for place, choice in enumerate(choices):
            scores = [100 * (c.score or 0.0) for c in cells if _key(c) == (*choice, kind)]
            if not scores:
                continue
            x = place + (number - (len(kinds) - 1) / 2) * width
            colour = COLOURS[number % len(COLOURS)]
            mean = sum(scores) / len(scores)
            axis.plot([x - 0.4 * width, x + 0.4 * width], [mean, mean], color=colour, lw=2.5)
            axis.plot([x] * len(scores), scores, "o", color=colour, ms=4, alpha=0.6, mew=0)
        axis.plot([], [], color=COLOURS[number % len(COLOURS)], lw=2.5, label=kind)
    full = 100 * report.yardstick.full_precision
    axis.axhline(full, color="0.5", lw=1, ls="--", label="full precision")
    names = [name_of_choice(*choice).replace(" ", "\n") for choice in choices]
    axis.set_xticks(range(len(choices)), names, fontsize="small")
    axis.set_xlim(-0.5, len(choices) - 0.5)
    axis.set_ylabel(f"{report.yardstick.score} in %")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize="small")


def _draw_similarity(axis: Any, cells: list[CellResult], report: StudyReport, measure: str) -> None:
    correlation, title = MEASURES[measure]
    choices = [choice for choice in _choices(report) if choice[1] != "structure"]
    kinds = _fine_tunings(report)
    for place, choice in enumerate(choices):
        marker = MARKERS[place % len(MARKERS)]
        axis.plot([], [], marker, color="0.4", ms=5, label=name_of_choice(*choice))
        for number, kind in enumerate(kinds):
            mine = [c for c in cells if _key(c) == (*choice, kind)]
            axis.plot(
                [getattr(c, measure) for c in mine],
                [100 * (c.score or 0.0) for c in mine],
                marker,
                color=COLOURS[number % len(COLOURS)],
                ms=5,
                alpha=0.7,
            )
    bits = cells[0].bits if cells else ""
    ranks = [
        f"{c.fine_tuning} {signed(getattr(c, correlation))}"
        for c in report.correlations
        if c.bits == bits
    ]
    axis.set_title("rank correlation: " + (", ".join(ranks) or "none"), fontsize="small")
    axis.set_xlabel(title)
    axis.set_ylabel(f"{report.yardstick.score} in %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def _choices(report: StudyReport) -> list[tuple[str, str | None]]:
    return list(dict.fromkeys((row.source, row.without) for row in report.rows))


def _fine_tunings(report: StudyReport) -> list[str]:
    return list(dict.fromkeys(row.fine_tuning for row in report.rows))


def _key(cell: CellResult) -> tuple[str, str | None, str]:
    return cell.source, cell.without, cell.fine_tuning
