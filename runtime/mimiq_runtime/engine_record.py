"""``engine.json``: how a TensorRT engine was built, from what, and what it computes in INT8.

A plan is read by way of its record, and the record of a run by way of ``run.json``: each has the
SHA-256 of the next.
"""

from __future__ import annotations

import hashlib
import os
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from mimiq_runtime.cuda_device import CudaDevice
from mimiq_runtime.errors import EngineError, RunDirectoryError
from mimiq_runtime.manifest import FileRecord
from mimiq_runtime.precision_report import PrecisionReport
from mimiq_runtime.run_directory import RunDirectory
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
    "read_plan",
    "recorded_engine",
    "run_of_plan",
]

PLAN, RECORD = "engine.plan", "engine.json"
"""Names of the two files of an engine, in one folder."""

_DEEP = 4  # engines / device / target / plan

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


def run_of_plan(plan: Path) -> tuple[RunDirectory, str] | None:
    """The run that a plan lies in, and its path there; None for a plan beside an ONNX file.

    Raises:
        RunDirectoryError: There is a ``run.json``, and it does not describe a run.
    """
    # A link into a run, and one that leads out of it, are both the run's business.
    for place in (plan.absolute(), plan.resolve()):
        root = place.parents[_DEEP - 1] if len(place.parents) >= _DEEP else None
        if root is not None and os.path.lexists(root / RunDirectory.MANIFEST):
            return RunDirectory.open(root), "/".join(place.parts[-_DEEP:])
    return None


def read_engine_record(plan: Path) -> EngineRecord | None:
    """Read the record beside a plan; None for a plan that was built elsewhere and has none.

    Raises:
        EngineError: The record is damaged.
        RunDirectoryError: As :func:`recorded_engine`, where the plan lies in a run.
    """
    place = run_of_plan(plan)
    if place is not None:
        return recorded_engine(*place)
    path = plan.with_name(RECORD)
    return _read(path) if path.is_file() else None


def recorded_engine(run: RunDirectory, plan: str) -> EngineRecord:
    """The record of a plan in a run, compared with its digest in ``run.json`` first.

    Args:
        run: The run.
        plan: Path of the plan inside it.

    Raises:
        EngineError: The record is damaged.
        RunDirectoryError: The run has no finished record of the plan, or one of another build.
    """
    build = _build_command(run, plan)
    record = _read(run.existing(f"{plan.rpartition('/')[0]}/{RECORD}", made_by=build))
    files = run.manifest.files
    # A build that was interrupted may leave the plan of one with the record of another.
    if plan not in files or files[plan].sha256 != record.plan.sha256:
        raise RunDirectoryError(
            f"{run.root / plan} and {RECORD} beside it are not of one build; make them again with "
            f"{build}."
        )
    return record


def read_plan(plan: Path, record: EngineRecord | None) -> bytes:
    """The serialized engine, if it is the one that its record describes.

    Args:
        plan: The file.
        record: What :func:`read_engine_record` gave; with None there is nothing to compare with.

    Raises:
        EngineError: It is another one.
    """
    content = plan.read_bytes()
    if record is not None and hashlib.sha256(content).hexdigest() != record.plan.sha256:
        raise EngineError(
            f"{plan} is not the engine that {RECORD} beside it describes; build it again with "
            "mimiq-deploy build."
        )
    return content


def _read(path: Path) -> EngineRecord:
    try:
        return read_schema(EngineRecord, path)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{path} is damaged: {reason_of(error)}; build the engine again with mimiq-deploy "
            "build."
        ) from error


def _build_command(run: RunDirectory, plan: str) -> str:
    target = plan.split("/")[-2]
    option = "" if target == "trt" else f" --target {target}"
    return f"mimiq-deploy build {run.root} --engine trt{option}"
