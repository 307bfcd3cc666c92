"""What ``metrics.jsonl`` has to show: head similarity while images are made, and every loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mimiq_runtime.report.drawing import FAINT, SERIES, WIDE, draw, logarithmic
from mimiq_runtime.report.section import Figure, Note, Section, missing_section

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mimiq_runtime.run_directory import RunDirectory

    Pieces = Mapping[int, Sequence[Mapping[str, Any]]]

__all__ = ["head_similarity_section", "losses_section"]

SIMILARITY, SIMILARITY_TITLE = "head-similarity", "Head similarity"
LOSSES, LOSSES_TITLE = "losses", "Losses"


def head_similarity_section(run: RunDirectory, prefix: str) -> Section:
    """How alike the heads of the model looked at the images while those were made."""
    pieces = run.read_metrics("synthesis")
    if not _has(pieces, "head_similarity"):
        source = run.manifest.recipe.get("synthesis", {}).get("source", "unknown")
        return missing_section(
            SIMILARITY,
            SIMILARITY_TITLE,
            f"No head similarity was recorded: the source of the images is {source}.",
            f"mimiq-deploy calibrate {run.manifest.model.name} --set synthesis.source=mimiq "
            "-o NEW_RUN",
        )
    first, last = (_mean_at(pieces, "head_similarity", end) for end in (0, -1))
    return Section(
        name=SIMILARITY,
        title=SIMILARITY_TITLE,
        intro="How alike the attention maps of different heads are, as structural similarity: "
        "1 is the same map. The method aims at a higher one, since heads agree on real pictures.",
        parts=(
            Figure(
                draw(
                    f"{prefix}head-similarity",
                    f"Head similarity went from {first:.3f} to {last:.3f}",
                    lambda axes: _paint_pieces(axes, pieces, "head_similarity", "head similarity"),
                ),
                f"From {first:.3f} to {last:.3f}, mean of {len(pieces)} shards; each faint line is "
                "one shard.",
            ),
            *([Note("It fell in this run, against the method's aim.")] if last < first else []),
        ),
    )


def losses_section(run: RunDirectory, prefix: str) -> Section:
    """Losses of synthesis, reconstruction and distillation, as far as they took part."""
    synthesis = run.read_metrics("synthesis")
    reconstruction = run.read_metrics("reconstruction")
    distillation = run.read_metrics("distillation")
    figures = []
    if _has(synthesis, "loss"):
        figures.append(
            Figure(
                draw(
                    f"{prefix}synthesis-loss",
                    "Loss of the synthesis by step",
                    lambda axes: _paint_pieces(axes, synthesis, "loss", "loss"),
                ),
                "Synthesis: the loss that makes the images; each faint line is one shard.",
            )
        )
    if _has(distillation, "loss"):
        figures += _distillation_figures(distillation, prefix)
    if _has(reconstruction, "error_after"):
        figures.append(
            Figure(
                draw(
                    f"{prefix}reconstruction",
                    "Error of each link before and after its reconstruction",
                    lambda axes: _paint_reconstruction(axes, reconstruction),
                    size=WIDE,
                ),
                "Reconstruction: squared error of each link of the chain as a share of its output, "
                "before and after it was trained.",
                wide=True,
            )
        )
    if not figures:
        return missing_section(
            LOSSES,
            LOSSES_TITLE,
            "No loss was recorded: the recipe makes no images by gradient and trains nothing.",
            f"mimiq-deploy calibrate {run.manifest.model.name} --recipe balanced -o NEW_RUN",
        )
    absent = [
        name
        for name, pieces in (
            ("synthesis", synthesis),
            ("reconstruction", reconstruction),
            ("distillation", distillation),
        )
        if not pieces
    ]
    note = (
        [Note(f"Without losses in this run, by its recipe: {', '.join(absent)}.")] if absent else []
    )
    return Section(LOSSES, LOSSES_TITLE, "As they were trained.", (*figures, *note))


def _distillation_figures(pieces: Pieces, prefix: str) -> list[Figure]:
    rows = [pieces[epoch][0] for epoch in sorted(pieces)]
    figures = [
        Figure(
            draw(
                f"{prefix}distillation",
                "Loss of the distillation by epoch",
                lambda axes: _paint_epochs(axes, rows, ("loss", "logit", "structure"), log=True),
            ),
            "Distillation: the loss and its two parts, before their weights.",
        )
    ]
    if all("agreement" in row for row in rows):
        figures.append(
            Figure(
                draw(
                    f"{prefix}agreement",
                    "Agreement with the teacher by epoch",
                    lambda axes: _paint_epochs(axes, rows, ("agreement",), log=False),
                ),
                "Share of the changed training images with the teacher's top-1.",
            )
        )
    return figures


def _has(pieces: Pieces, key: str) -> bool:
    return any(key in row for rows in pieces.values() for row in rows)


def _mean_at(pieces: Pieces, key: str, end: int) -> float:
    values = [rows[end][key] for rows in pieces.values() if rows]
    return float(sum(values) / len(values))


def _paint_pieces(axes: Any, pieces: Pieces, key: str, label: str) -> None:
    """One faint line a shard, and their mean where all were measured at the same steps."""
    lines = [
        ([row["step"] for row in rows], [row[key] for row in rows]) for rows in pieces.values()
    ]
    for steps, values in lines:
        axes.plot(steps, values, color=FAINT, lw=1, alpha=0.45)
    steps = lines[0][0]
    alike = [values for own, values in lines if own == steps]
    mean = [sum(column) / len(column) for column in zip(*alike, strict=True)]
    axes.plot(steps, mean, "o-", color=SERIES[0], ms=4)
    axes.set_xlabel("step")
    axes.set_ylabel(label)


def _paint_epochs(
    axes: Any, rows: Sequence[Mapping[str, Any]], keys: tuple[str, ...], *, log: bool
) -> None:
    epochs = [row["epoch"] + 1 for row in rows]
    marker = "o-" if len(rows) <= 40 else "-"
    for number, key in enumerate(keys):
        values = [row[key] for row in rows]
        axes.plot(epochs, values, marker, color=SERIES[number], ms=3, label=key)
    if log and all(row[key] > 0 for row in rows for key in keys):
        logarithmic(axes)
    axes.set_xlabel("epoch")
    if len(keys) > 1:
        axes.legend()
    else:
        axes.set_ylabel(keys[0])


def _paint_reconstruction(axes: Any, pieces: Pieces) -> None:
    rows = [pieces[link][0] for link in sorted(pieces)]
    places = range(len(rows))
    before = [row["error_before"] for row in rows]
    after = [row["error_after"] for row in rows]
    for place, high, low in zip(places, before, after, strict=True):
        axes.plot([place, place], [high, low], color=FAINT, lw=1)
    axes.plot(places, before, "o", color=SERIES[1], label="before")
    axes.plot(places, after, "o", color=SERIES[0], label="after")
    if all(value > 0 for value in (*before, *after)):
        logarithmic(axes)
    names = [str(row["link"]) for row in rows]
    axes.set_xticks(places, names, rotation=60 if len(rows) > 6 else 0, fontsize=9)
    axes.set_ylabel("share of the output")
    axes.legend()
