"""``engine.json``: how a TensorRT engine was built, from what, and what it computes in INT8."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from mimiq_runtime.cuda_device import CudaDevice
from mimiq_runtime.errors import EngineError
from mimiq_runtime.manifest import FileRecord
from mimiq_runtime.precision_report import PrecisionReport
from mimiq_runtime.schema import Schema, read_schema, reason_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "PLAN",
    "RECORD",
    "BuildOptions",
    "EngineRecord",
    "HardwareCompatibility",
    "ShapeProfile",
    "read_engine_record",
]

PLAN, RECORD = "engine.plan", "engine.json"
"""Names of the two files of an engine, in one folder."""


_AMPERE = (8, 0)


class HardwareCompatibility(StrEnum):
    """On which other GPUs an engine may run, at some cost of speed."""

    NONE = "none"
    AMPERE_PLUS = "ampere-plus"
    SAME_COMPUTE_CAPABILITY = "same-compute-capability"


class BuildOptions(Schema):
    """How to build an engine.

    Attributes:
        min_batch: Smallest batch that it shall take.
        opt_batch: The batch that it is tuned for; where it is not given 8, or the batch next to it
            that the engine takes.
        max_batch: Largest batch that it shall take.
        workspace_mib: Scratch memory that a kernel may use, in MiB; None for TensorRT's default.
        optimization_level: 0 (quick build) to 5 (searches longest); None for TensorRT's default.
        version_compatible: Let later versions of TensorRT run it.
        hardware_compatibility: Let other GPUs run it.
        refittable: Allow its weights to be replaced by others.
        strip_weights: Leave the weights out of the file; it must be refitted before it can run,
            with the same weights unless it is refittable, too.
        tf32: Allow TF32 where the model is in single precision.
    """

    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 32
    workspace_mib: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = HardwareCompatibility.NONE
    refittable: bool = False
    strip_weights: bool = False
    tf32: bool = False

    @model_validator(mode="before")
    @classmethod
    def _tune_for_a_batch_that_it_takes(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "opt_batch" in given:
            return given
        least, usual, most = (
            given.get(name, cls.model_fields[name].default)
            for name in ("min_batch", "opt_batch", "max_batch")
        )
        # What is no number is for pydantic to name.
        if not (isinstance(least, int) and isinstance(most, int)):
            return given
        return {**given, "opt_batch": max(least, min(usual, most))}


class ShapeProfile(Schema):
    """The shapes that an engine takes.

    Attributes:
        input: Name of the input.
        min: Smallest shape (N, C, H, W).
        opt: The shape that it is tuned for.
        max: Largest shape.
    """

    input: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class EngineRecord(Schema):
    """The content of ``engine.json``.

    Attributes:
        created: Time of the build, ISO 8601 in UTC.
        device: The GPU that it was built on.
        libraries: Version of TensorRT, Polygraphy and cuda-python.
        onnx: The ONNX file as it was given.
        onnx_sha256: SHA-256 of that file.
        options: How it was built.
        profile: The shapes that it takes.
        timing_cache_sha256: SHA-256 of the timing cache after the build.
        build_seconds: Wall-clock time of the build.
        weights: ``in the plan``, ``stripped``, or ``refitted from <SHA-256 of the ONNX file>``.
        plan: Digest and size of the plan.
        precision: What it computes in which precision.
    """

    created: str
    device: CudaDevice
    libraries: dict[str, str]
    onnx: str
    onnx_sha256: str
    options: BuildOptions
    profile: ShapeProfile
    timing_cache_sha256: str | None
    build_seconds: float
    weights: str
    plan: FileRecord
    precision: PrecisionReport

    def runs_on(self, device: CudaDevice) -> bool:
        """Whether it was built for a GPU: the one that built it, or one that it is compatible with.

        Args:
            device: The GPU.
        """
        built_on = self.device.compute_capability
        match self.options.hardware_compatibility:
            case HardwareCompatibility.NONE:
                return device.slug == self.device.slug
            case HardwareCompatibility.SAME_COMPUTE_CAPABILITY:
                return device.compute_capability == built_on
            case HardwareCompatibility.AMPERE_PLUS:
                return min(_number(device.compute_capability), _number(built_on)) >= _AMPERE


def _number(compute_capability: str) -> tuple[int, ...]:
    """To compare by: 10.0 comes after 8.9."""
    return tuple(int(part) for part in compute_capability.split("."))


def read_engine_record(plan: Path) -> EngineRecord | None:
    """Read the record beside a plan; None for a plan that was built elsewhere and has none.

    Raises:
        EngineError: The record is damaged.
    """
    path = plan.with_name(RECORD)
    if not path.is_file():
        return None
    try:
        return read_schema(EngineRecord, path)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{path} is damaged: {reason_of(error)}; build the engine again with mimiq-deploy "
            "build."
        ) from error
