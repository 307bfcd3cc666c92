"""Where both models look, in the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_runtime.inside_view import read_attention_maps, read_inside_record
from mimiq_runtime.report.embedding import embed_map, embed_pixels
from mimiq_runtime.report.section import MapRows, MapStrip, Section, missing_section

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["attention_section", "map_similarity"]

NAME, TITLE = "attention", "Attention maps"


def attention_section(run: RunDirectory, why_missing: str | None) -> Section:
    """Attention maps of the full-precision and the quantized model.

    Args:
        run: The run.
        why_missing: Why they could not be made here; None where they were tried.
    """
    record = read_inside_record(run)
    if record is None:
        return missing_section(
            NAME,
            TITLE,
            f"Attention maps need both models in torch. {why_missing or ''}".strip(),
            f"mimiq-deploy report {run.root}",
        )
    if not record.attention:
        return missing_section(NAME, TITLE, "The tokens of this model are no grid of places.")
    maps = read_attention_maps(run, record)
    images = []
    for number, pixels in enumerate(maps.images):
        pairs = [
            (maps.full_precision[name][number], maps.quantized[name][number])
            for name in record.attention
        ]
        # One scale for both: else the eye would compare two legends.
        largest = [float(max(exact.max(), other.max())) for exact, other in pairs]
        strips = [
            MapStrip(
                label,
                [embed_map(pair[side], top) for pair, top in zip(pairs, largest, strict=True)],
            )
            for side, label in enumerate(("full precision", "quantized"))
        ]
        images.append((embed_pixels(pixels), strips))
    return Section(
        name=NAME,
        title=TITLE,
        intro=f"Where the model looks, layer by layer: {record.query}. Bright is much; both models "
        "share one scale in each layer of an image.",
        parts=(
            MapRows(
                layers=[name.removesuffix(".attn") for name in record.attention],
                images=images,
                similarity=[
                    f"{map_similarity(maps.full_precision[name], maps.quantized[name]):.2f}"
                    for name in record.attention
                ],
                caption=f"Images: {record.source}. Last line: correlation of the two models' maps, "
                "mean over the images shown; 1 is the same map.",
            ),
        ),
    )


def map_similarity(exact: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> float:
    """Pearson's correlation of two maps ``(n, rows, columns)``, mean over n; 0 for a flat map."""
    a = exact.reshape(len(exact), -1).astype(np.float64)
    b = other.reshape(len(other), -1).astype(np.float64)
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    return float(np.divide(products, length, out=np.zeros_like(length), where=length > 0).mean())
