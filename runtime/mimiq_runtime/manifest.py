"""``run.json``: what a run directory holds, and where all of it came from."""

from __future__ import annotations

import math
import os
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mimiq_runtime.errors import RunDirectoryError
from mimiq_runtime.input_limits import (
    FARTHEST_MEAN,
    LARGEST_INPUT,
    LARGEST_STD,
    SMALLEST_STD,
)
from mimiq_runtime.schema import Schema

__all__ = [
    "SCHEMA_VERSION",
    "FileRecord",
    "ModelRecord",
    "Preprocessing",
    "RunManifest",
    "StageRecord",
    "StageState",
]

SCHEMA_VERSION = 1
"""Raised whenever an older program could misread a newer run directory."""

LARGEST_SEED = 2**63 - 1
"""What every library takes as a seed."""


class Preprocessing(Schema):
    """How a picture becomes the model's input; the fields are timm's data configuration.

    Attributes:
        input_size: Channels, height and width of the model's input, in pixels. One channel means
            that pictures are read as grayscale.
        mean: Mean of each channel in the range 0 to 1.
        std: Standard deviation of each channel in the range 0 to 1, all positive.
        interpolation: Filter of the resize.
        crop_pct: The centre crop keeps this share of the resized picture's shorter side.
        crop_mode: ``center`` resizes the shorter side; ``squash`` resizes both sides.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    crop_pct: float = Field(default=0.875, gt=0, le=1)
    crop_mode: Literal["center", "squash"] = "center"

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Self:
        channels = self.input_size[0]
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"the model has {channels} input channels, and there are {len(self.mean)} means "
                f"and {len(self.std)} standard deviations"
            )
        if min(self.input_size) < 1 or not all(value > 0 for value in self.std):
            raise ValueError("sizes and standard deviations must be positive")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            raise ValueError("means and standard deviations must be finite")
        if not all(abs(value) <= FARTHEST_MEAN for value in self.mean) or not all(
            SMALLEST_STD <= value <= LARGEST_STD for value in self.std
        ):
            raise ValueError(
                f"means must be within {FARTHEST_MEAN:g} of 0, and standard deviations from "
                f"{SMALLEST_STD:g} to {LARGEST_STD:g}, of pixels from 0 to 1"
            )
        # Before memory is taken for a batch of them.
        if math.prod(self.input_size) > LARGEST_INPUT:
            raise ValueError(f"an input has at most {LARGEST_INPUT} values")
        return self


class ModelRecord(Schema):
    """Which model was quantized.

    Attributes:
        name: timm's name of the architecture.
        arguments: Arguments of its constructor beyond timm's defaults.
        num_classes: Length of the logits.
        weights: Where the weights came from: a file's name, or timm's tag of pretrained weights.
        weights_sha256: SHA-256 of the full-precision state dict as stored in the run.
        labels: Name of each class, or None when nobody knows them.
    """

    name: str
    arguments: dict[str, Any]
    num_classes: int = Field(ge=1, le=1_000_000)
    weights: str
    weights_sha256: str
    labels: list[str] | None = None


class StageState(StrEnum):
    """How far a stage has come."""

    RUNNING = "running"
    DONE = "done"


class StageRecord(Schema):
    """State of one stage of the run.

    Attributes:
        state: Running or done. A stage that was killed stays ``running`` and can be resumed.
        seconds: Wall-clock time of the stage, summed over resumptions.
        details: What the stage has to tell, such as its final losses.
    """

    state: StageState
    seconds: float = 0.0
    details: dict[str, Any] = Field(default_factory=dict)


class FileRecord(Schema):
    """One file of the run.

    Attributes:
        sha256: Hexadecimal digest of its content.
        bytes: Its size.
    """

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class RunManifest(Schema):
    """The content of ``run.json``.

    Attributes:
        schema_version: See :data:`SCHEMA_VERSION`.
        created: Time of the run's start, ISO 8601 in UTC.
        model: Which model was quantized.
        preprocessing: How a picture becomes the model's input.
        recipe: The recipe as it was resolved, every key written out.
        seed: Seed of every random choice.
        environment: Version of each library that took part, and of the platform.
        stages: State of each stage, by its name.
        files: Digest of each finished file, by its path relative to the run directory.
        replacing: Digest of what is about to take the place of a finished file, by its path. After
            an interruption one of the two is there, and either is whole.
    """

    schema_version: int = SCHEMA_VERSION
    created: str
    model: ModelRecord
    preprocessing: Preprocessing
    recipe: dict[str, Any]
    seed: int = Field(ge=0, le=LARGEST_SEED)
    environment: dict[str, str]
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    files: dict[str, FileRecord] = Field(default_factory=dict)
    replacing: dict[str, FileRecord] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _recipe_has_sections(self) -> Self:
        sections = {name: self.recipe.get(name, {}) for name in ("quantization", "synthesis")}
        odd = [name for name, value in sections.items() if not isinstance(value, dict)]
        if odd:
            raise ValueError(f"the recipe's {' and '.join(odd)} must be a section of its own")
        return self

    @model_validator(mode="after")
    def _paths_stay_inside(self) -> Self:
        for relative in (*self.files, *self.replacing):
            path = PurePosixPath(relative)
            if not path.parts or path.is_absolute() or ".." in path.parts or str(path) != relative:
                raise ValueError(f"{relative[:80]!r} is not the path of a file inside the run")
            if not relative.isprintable() or max(len(os.fsencode(p)) for p in path.parts) > 255:
                raise ValueError(f"{relative[:80]!r} is not the name of a file")
        return self

    @property
    def bits(self) -> str:
        """The bit widths in the field's notation, such as ``w4a4``.

        Raises:
            RunDirectoryError: The recipe has none.
        """
        try:
            quantization = self.recipe["quantization"]
            return f"w{quantization['weight_bits']}a{quantization['activation_bits']}"
        except (KeyError, TypeError) as error:
            raise RunDirectoryError(
                "run.json has a recipe without bit widths (quantization.weight_bits and "
                "quantization.activation_bits); calibrate again."
            ) from error
