"""What an ONNX file tells about where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mimiq_runtime.manifest import Preprocessing

__all__ = ["ExportProvenance"]


@dataclass(frozen=True)
class ExportProvenance:
    """Written into the ONNX file's metadata, so that the file alone can be traced back.

    Attributes:
        version: Version of mimiq-deploy.
        run_id: Identifies the run and its weights, such as a SHA-256.
        model: timm's name of the architecture.
        bits: Bit widths in short, such as ``w4a4``; ``fp32`` for a model that is not quantized.
        recipe: Name of the recipe.
        preprocessing: How a picture becomes the model's input.
    """

    version: str
    run_id: str
    model: str
    bits: str
    recipe: str
    preprocessing: Preprocessing
