"""Which file of a run an engine opens: the one place that maps engines to exports and plans."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from mimiq_deploy.exporting import BASELINES, onnx_path
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.session import known_engines, target_of

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_runtime.cuda_device import CudaDevice
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["check_target", "engine_folder", "engine_model", "known_targets", "plan_for"]

_BUILT = "trt"


def known_targets() -> tuple[str, ...]:
    """Names of all exports, also where onnx-ir is missing, which it takes to write them."""
    return tuple(dict.fromkeys([*map(target_of, known_engines()), *BASELINES]))


def check_target(name: str) -> None:
    """Refuse a name that no export can have, before anybody is sent to make that export.

    Raises:
        InvalidInputError: There is no such target.
    """
    known = known_targets()
    if name not in known:
        raise InvalidInputError(f"There is no target {name!r}; choose one of {', '.join(known)}.")


def engine_model(run: RunDirectory, engine: str, *, target: str | None = None) -> Path:
    """The file of a run that an engine opens.

    Args:
        run: The run.
        engine: One of :func:`mimiq_runtime.session.known_engines`.
        target: The export; the one that the engine reads if None.

    Returns:
        The ONNX file; for ``trt`` the plan that was built from it on this device, or on another one
        with a hardware compatibility that takes this one in.

    Raises:
        InvalidInputError: There is no such target.
        RunDirectoryError: It was not exported, or not built, or is not what was recorded.
        MissingDependencyError: ``trt``, and cuda-python is not installed.
        EngineError: ``trt``, and there is no GPU, or the record of a plan is damaged.
    """
    target = target if target is not None else target_of(engine)
    check_target(target)
    if engine != _BUILT:
        return run.existing(
            onnx_path(target), made_by=f"mimiq-deploy export {run.root} --target {target}"
        )
    from mimiq_runtime.cuda_runtime import CudaRuntime

    device = CudaRuntime().device()
    option = "" if target == target_of(engine) else f" --target {target}"
    return run.existing(
        plan_for(run, device, target),
        made_by=f"mimiq-deploy build {run.root} --engine trt{option}",
    )


def engine_folder(device: CudaDevice, target: str) -> str:
    """Folder inside a run of the engine that was built on a device for an export."""
    return f"engines/{device.slug}/{target}"


def plan_for(run: RunDirectory, device: CudaDevice, target: str) -> str:
    """Path inside a run of a device's plan.

    Returns:
        The one that was built on it; else one that another device built for it, too; else where
        its own would be.

    Raises:
        EngineError: The record of another device's plan is damaged.
        RunDirectoryError: It is not what ``run.json`` has the digest of.
    """
    from mimiq_runtime.engine_record import PLAN, recorded_engine

    own = f"{engine_folder(device, target)}/{PLAN}"
    if own in run.manifest.files:
        return own
    for name in sorted(run.manifest.files):
        anothers = fnmatch.fnmatchcase(name, f"engines/*/{target}/{PLAN}")
        if anothers and recorded_engine(run, name).runs_on(device):
            return name
    return own
