"""What quantization costs by images that were held out, without any data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mimiq_runtime.estimate import caution, read_estimate
from mimiq_runtime.report.drawing import SERIES, draw
from mimiq_runtime.report.numbers import decibels, percent, scientific
from mimiq_runtime.report.section import Facts, Figure, Note, Section, missing_section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimiq_runtime.estimate import BlockError
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["estimate_section"]

NAME, TITLE = "estimate", "Estimate without data"


def estimate_section(run: RunDirectory, prefix: str) -> Section:
    """The content of ``estimate.json``."""
    cost = read_estimate(run)
    if cost is None:
        return missing_section(
            NAME,
            TITLE,
            "No images were held out to estimate by.",
            f"mimiq-deploy calibrate {run.manifest.model.name} --set synthesis.held_out=32 "
            "-o NEW_RUN",
        )
    logits = cost.logits
    misled = caution(run.manifest.bits, cost.source)
    facts = {
        "accuracy kept": f"about {percent(cost.accuracy_kept)} of the full-precision accuracy, "
        f"{percent(cost.accuracy_kept_low)} to {percent(cost.accuracy_kept_high)} (95 %)",
        "same top-1": f"{percent(logits.agreement)} of {cost.images} images",
        "SQNR of the logits": decibels(logits.sqnr_db, identical=logits.identical),
        "KL divergence": f"{scientific(logits.kl, identical=logits.identical)} nats",
        "confidence": f"{percent(cost.confidence)}, mean of the full-precision model",
    }
    blocks = [row for row in cost.blocks if row.sqnr_db is not None]
    figures = []
    if blocks:
        figures.append(
            Figure(
                draw(
                    f"{prefix}blocks",
                    "Signal-to-quantization-noise ratio behind each block in dB",
                    lambda axes: _paint(axes, blocks),
                ),
                "Signal-to-quantization-noise ratio behind each block, all before it quantized, "
                "too.",
            )
        )
    return Section(
        name=NAME,
        title=TITLE,
        intro="By images that nothing was fitted to and no label: the full-precision model's own "
        "probabilities take the place of the labels.",
        parts=(
            Facts(list(facts.items())),
            *figures,
            Note(
                f"The images are of the source {cost.source}. How photographs differ from them, "
                f"the interval does not know.{'' if misled is None else f' {misled}.'}"
            ),
        ),
    )


def _paint(axes: Any, blocks: Sequence[BlockError]) -> None:
    places = range(len(blocks))
    axes.plot(places, [row.sqnr_db for row in blocks], "o-", color=SERIES[0])
    step = max(1, len(blocks) // 8)
    axes.set_xticks(places[::step], [row.block for row in blocks][::step], fontsize=9)
    axes.tick_params(axis="x", rotation=40)
    axes.set_ylim(bottom=min(0.0, *(row.sqnr_db or 0.0 for row in blocks)))
    axes.set_ylabel("dB")
