"""Looking inside both models of a run, for the report: attention maps, error of each layer."""

from __future__ import annotations

from importlib import util
from typing import TYPE_CHECKING

from mimiq_runtime.inside_view import (
    FULL_PRECISION,
    INSIDE_ATTENTION,
    INSIDE_RECORD,
    QUANTIZED,
    InsideRecord,
)
from mimiq_runtime.progress import progress_bar
from mimiq_runtime.run_directory import writes_run
from mimiq_runtime.run_images import read_shard, shards_of

if TYPE_CHECKING:
    from torch import Tensor

    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["look_inside", "why_not_inside"]

IMAGES = 16
"""The errors are over this many images at most."""

SHOWN = 3
"""Images whose attention maps are kept."""

BATCH = 4


def why_not_inside(run: RunDirectory) -> str | None:
    """Why a run cannot be looked into here, and what to do; None where it can be."""
    if run.QUANTIZED not in run.manifest.files or run.MODEL not in run.manifest.files:
        return (
            f"The run is not calibrated to its end: mimiq-deploy calibrate --resume -o {run.root}."
        )
    if any(util.find_spec(library) is None for library in ("torch", "timm")):
        return (
            "torch and timm are not installed here: pip install 'mimiq-deploy[calib]', or run "
            f"mimiq-deploy report {run.root} once where they are."
        )
    return None


@writes_run("report")
def look_inside(run: RunDirectory) -> None:
    """Measure and write ``inside/`` of a calibrated run.

    Args:
        run: A run with :func:`why_not_inside` None.

    Raises:
        RunDirectoryError: A file of the run is missing or damaged, or another version wrote the
            run's recipe.
    """
    import torch

    from mimiq_calib.attention_maps import attention_maps, query_of_maps
    from mimiq_calib.layer_errors import LayerErrorSums
    from mimiq_calib.pixels import PixelScale
    from mimiq_calib.run_models import load_student, load_teacher

    teacher, student = load_teacher(run), load_student(run)
    pixels, source = _images(run)
    scale = PixelScale(run.manifest.preprocessing, torch.device("cpu"))
    sums = LayerErrorSums(student, teacher)
    with progress_bar("looking inside", len(pixels)) as advance:
        for batch in torch.split(pixels, BATCH):
            sums.add(scale.normalise(scale.to_unit(batch)))
            advance(len(batch), "")
    shown = scale.normalise(scale.to_unit(pixels[:SHOWN]))
    exact, quantized = attention_maps(teacher, shown), attention_maps(student, shown)
    names = [name for name in exact if name in quantized]
    run.write_tensors(
        INSIDE_ATTENTION,
        {"images": pixels[:SHOWN].numpy()}
        | {FULL_PRECISION + name: exact[name].numpy() for name in names}
        | {QUANTIZED + name: quantized[name].numpy() for name in names},
    )
    record = InsideRecord(
        quantized_sha256=run.manifest.files[run.QUANTIZED].sha256,
        images=len(pixels),
        source=source,
        query=query_of_maps(teacher),
        attention=names,
        layers=sums.errors(),
    )
    run.write_json(INSIDE_RECORD, record.model_dump(mode="json"))


def _images(run: RunDirectory) -> tuple[Tensor, str]:
    """The first images, uint8 ``(n, c, h, w)``: those held out where there are any."""
    import torch

    synthesis = run.manifest.recipe["synthesis"]
    pixels = torch.cat([torch.from_numpy(read_shard(run, name)) for name in shards_of(run)])
    held_out = pixels[synthesis["num_images"] :]
    if len(held_out):
        return held_out[:IMAGES], f"held-out images ({synthesis['source']})"
    return pixels[:IMAGES], f"calibration images ({synthesis['source']})"
