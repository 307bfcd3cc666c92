"""The last stage of a calibration: estimating what it cost, without data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mimiq_runtime.estimate import ESTIMATE_PATH, FOLDER, caution
from mimiq_runtime.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mimiq_calib.recipe import Recipe
    from mimiq_runtime.estimate import CostEstimate
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["ESTIMATE", "describe_block_errors", "describe_estimate", "estimate"]

ESTIMATE = "estimate"


def estimate(
    run: RunDirectory, student: nn.Module, teacher: nn.Module, recipe: Recipe, held_out: Tensor
) -> None:
    """Write ``estimate.json`` from the images that were held out; nothing where there are none.

    Args:
        run: The run, its student finished.
        student: The quantized model.
        teacher: The full-precision model.
        recipe: How many images at a time.
        held_out: uint8 pixels, ``(count, channels, height, width)``.
    """
    from mimiq_calib.estimation import estimate_cost

    if not len(held_out):
        return
    begun = time.monotonic()
    run.begin_stage(ESTIMATE)
    with progress_bar(ESTIMATE, len(held_out)) as advance:
        result = estimate_cost(
            student,
            teacher,
            held_out,
            run.manifest.preprocessing,
            source=recipe.synthesis.source,
            batch_size=recipe.observation.batch_size,
            seed=run.manifest.seed,
            advance=advance,
        )
    run.write_json(ESTIMATE_PATH, result.model_dump(mode="json"))
    run.finish_stage(ESTIMATE, seconds=time.monotonic() - begun)


def describe_estimate(result: CostEstimate, bits: str) -> str:
    """The estimate in a sentence, with what it rests on, and one of how it misled before.

    Args:
        result: The estimate.
        bits: Of the run, such as ``w4a4``.
    """
    kept, low, high = (
        100 * share
        for share in (result.accuracy_kept, result.accuracy_kept_low, result.accuracy_kept_high)
    )
    logits = result.logits
    sqnr = "infinite" if logits.sqnr_db is None else f"{logits.sqnr_db:.1f} dB"
    divergence = "not finite" if logits.kl is None else f"{logits.kl:.3g} nats"
    rests_on = (
        "pictures of the folder that calibration did not see"
        if result.source == FOLDER
        else f"images ({result.source}), no photograph was seen"
    )
    misled = caution(bits, result.source)
    return (
        f"keeps about {kept:.0f} % of the full-precision accuracy ({low:.0f} to {high:.0f} %), "
        f"agreement {100 * logits.agreement:.0f} %, KL divergence {divergence}, logit SQNR {sqnr}: "
        f"by {result.images} held-out {rests_on}{'' if misled is None else f'. {misled}'}"
    )


def describe_block_errors(result: CostEstimate) -> str:
    """The SQNR behind each block in one line, all blocks before it quantized, too."""
    return ", ".join(
        f"{row.block} {'-' if row.sqnr_db is None else f'{row.sqnr_db:.1f}'}"
        for row in result.blocks
    )
