"""Where quantization hurts: the error of each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mimiq_runtime.inside_view import read_inside_record
from mimiq_runtime.report.drawing import FAINT, SERIES, WIDE, draw
from mimiq_runtime.report.numbers import decibels
from mimiq_runtime.report.section import DataTable, Figure, Section, missing_section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimiq_runtime.inside_view import LayerError
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["layer_error_section"]

NAME, TITLE = "layer-errors", "Error of each layer"
WORST = 8

_MARKERS = {"linear": "o", "convolution": "s", "attention": "D"}


def layer_error_section(run: RunDirectory, prefix: str, why_missing: str | None) -> Section:
    """Signal-to-noise ratio of each layer's output, alone and with all before it quantized.

    Args:
        run: The run.
        prefix: What the names of its figures begin with.
        why_missing: Why they could not be measured here; None where they were tried.
    """
    record = read_inside_record(run)
    if record is None:
        return missing_section(
            NAME,
            TITLE,
            f"The error of each layer needs both models in torch. {why_missing or ''}".strip(),
            f"mimiq-deploy report {run.root}",
        )
    layers = record.layers
    measured = [row for row in layers if row.own_db is not None]
    worst = sorted(measured, key=lambda row: row.own_db or 0.0)[:WORST]
    columns = ("layer", "kind", "this layer alone", "all up to it")
    return Section(
        name=NAME,
        title=TITLE,
        intro="Signal-to-quantization-noise ratio of the layers' outputs over "
        f"{record.images} {record.source}; 10 dB more is a tenth of the noise. Alone: only this "
        "layer's operands are quantized. All up to it: against the full-precision model, which "
        "also counts what the training changed.",
        parts=(
            Figure(
                draw(
                    f"{prefix}layer-errors",
                    "Signal-to-quantization-noise ratio of each layer in dB",
                    lambda axes: _paint(axes, layers),
                    size=WIDE,
                ),
                "One column a layer, in the order in which they run: circles are Linears, squares "
                "convolutions, diamonds the two products of an attention.",
                wide=True,
            ),
            DataTable(columns, [_row(each) for each in worst], "The worst on their own", words=2),
            DataTable(columns, [_row(each) for each in layers], "All layers", words=2, folded=True),
        ),
    )


def _row(layer: LayerError) -> tuple[str, ...]:
    total = "-" if layer.total_db is None else decibels(layer.total_db)
    return layer.layer, layer.kind, decibels(layer.own_db), total


def _paint(axes: Any, layers: Sequence[LayerError]) -> None:
    totals = [(place, row.total_db) for place, row in enumerate(layers) if row.total_db is not None]
    if totals:
        axes.plot(*zip(*totals, strict=True), "-", color=SERIES[1], label="all up to it")
    for kind, marker in _MARKERS.items():
        own = [
            (place, row.own_db)
            for place, row in enumerate(layers)
            if row.kind == kind and row.own_db is not None
        ]
        if own:
            axes.plot(*zip(*own, strict=True), marker, color=SERIES[0])
    axes.plot([], [], "o", color=SERIES[0], label="this layer alone")
    starts = [place for place in range(len(layers)) if _begins_block(layers, place)]
    for place in starts:
        axes.axvline(place - 0.5, color=FAINT, lw=0.6, ls=":")
    step = max(1, len(starts) // 12)
    # Steep, and ending at their ticks: the first layer stands right beside the first block.
    axes.set_xticks(
        starts[::step],
        [_block(layers[place].layer) for place in starts[::step]],
        fontsize=9,
        rotation=60,
        ha="right",
        rotation_mode="anchor",
    )
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("dB")
    axes.legend(ncols=2, loc="lower left")


def _block(name: str) -> str:
    """The part of a name up to its last number, such as ``blocks.3`` or ``layers.0.blocks.1``."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else parts[0]


def _begins_block(layers: Sequence[LayerError], place: int) -> bool:
    return place == 0 or _block(layers[place].layer) != _block(layers[place - 1].layer)
