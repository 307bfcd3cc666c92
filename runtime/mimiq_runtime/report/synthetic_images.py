"""What the model was calibrated on, to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimiq_runtime.report.embedding import embed_file
from mimiq_runtime.report.section import Picture, Section, missing_section

if TYPE_CHECKING:
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["images_section"]

PREVIEW = "images/preview.png"
NAME, TITLE = "images", "Calibration images"

_STARTS = {"noise": "noise", "dead-leaves": "pictures of random shapes"}

_ORIGINS = {
    "mimiq": "Made from {start} with nothing but the weights: the attention maps of the heads were "
    "brought to agree, and each image to a class.",
    "patch-similarity": "Made from noise with nothing but the weights, by the diversity of the "
    "patches (PSAQ-ViT).",
    "noise": "Plain noise, in the range of the model's input.",
    "folder": "Pictures of a folder: this run has seen data.",
}


def images_section(run: RunDirectory) -> Section:
    """The preview of the images."""
    synthesis = run.manifest.recipe.get("synthesis", {})
    if PREVIEW not in run.manifest.files:
        return missing_section(
            NAME,
            TITLE,
            "No images have been made.",
            f"mimiq-deploy calibrate {run.manifest.model.name} --resume -o {run.root}",
        )
    path = run.existing(PREVIEW, made_by="mimiq-deploy calibrate")
    source = str(synthesis.get("source", "unknown"))
    count = synthesis.get("num_images", "?")
    # Runs of earlier versions do not say it: there was only one.
    start = str(synthesis.get("start", "noise"))
    among = synthesis.get("dead_leaves", 0)
    return Section(
        name=NAME,
        title=TITLE,
        intro=_ORIGINS.get(source, f"From the source {source}.").format(
            start=_STARTS.get(start, start)
        ),
        parts=(
            Picture(
                embed_file(path),
                alt=f"The first calibration images of the source {source}",
                caption=f"The first of {count} images."
                + (f" {among} more pictures of random shapes are mixed in." if among else ""),
                pixelated=run.manifest.preprocessing.input_size[1] <= 64,
            ),
        ),
    )
