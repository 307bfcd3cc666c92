"""Building TensorRT engines from a run or from an ONNX file, without torch."""

from __future__ import annotations

import contextlib
import functools
import shlex
import shutil
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mimiq_deploy.engine_models import check_target, engine_folder, plan_for
from mimiq_deploy.exporting import BASELINES, onnx_path
from mimiq_runtime.atomic import atomic_group, sha256_of, write_bytes, write_json
from mimiq_runtime.classifier_checks import check_onnx_file
from mimiq_runtime.cuda_runtime import CudaRuntime
from mimiq_runtime.engine_record import (
    PLAN,
    RECORD,
    BuildOptions,
    EngineRecord,
    read_engine_record,
    read_plan,
)
from mimiq_runtime.errors import (
    DeviceNeededError,
    EngineError,
    InvalidInputError,
    MissingDependencyError,
)
from mimiq_runtime.event_log import note_finished, note_started
from mimiq_runtime.machine import library_versions
from mimiq_runtime.manifest import FileRecord
from mimiq_runtime.named_steps import named_steps
from mimiq_runtime.output_file import check_output_file, check_output_folder
from mimiq_runtime.run_directory import RunDirectory
from mimiq_runtime.trt_build import (
    STEPS,
    build_engine,
    check_options,
    import_polygraphy,
    refit_plan,
)
from mimiq_runtime.trt_host_code import check_host_code
from mimiq_runtime.trt_library import import_tensorrt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mimiq_runtime.cuda_device import CudaDevice

__all__ = ["REJECTED", "build_command", "build_model"]

REJECTED = "rejected.json"
"""The record of an engine that was not written, because its precision was not proved."""

_TIMING_CACHE = "timing.cache"


def build_model(
    model: Path,
    options: BuildOptions,
    *,
    target: str = "trt",
    output: Path | None = None,
    timing_cache: Path | None = None,
    allow_floating_point: bool = False,
    refit: bool = False,
) -> tuple[EngineRecord, Path]:
    """Build an engine for this device, and write it with its record.

    Args:
        model: A run that was exported for the target, or an ONNX file.
        options: How to build it.
        target: The export of a run to build from.
        output: Folder of the engine; within the run, or beside the ONNX file, if None.
        timing_cache: File of kernel timings; one for each device, beside the engines, if None.
        allow_floating_point: Accept quantized products that are not shown to run in INT8.
        refit: Build nothing; put the weights of the ONNX file into the engine that is there.

    Returns:
        The record, and where the engine lies. When its precision is not proved and that is not
        allowed, no engine is written: the path is that of :data:`REJECTED`.

    Raises:
        InvalidInputError: The model is not there, there is no such target, or the options
            contradict each other.
        DeviceNeededError: TensorRT or a GPU is missing here.
        EngineError: TensorRT cannot build or load the engine.
    """
    check_options(options)
    check_target(target)
    run = RunDirectory.open(model) if model.is_dir() else None
    with contextlib.nullcontext() if run is None else run.writing("build"):
        return _build_alone(
            model,
            run,
            options,
            target=target,
            output=output,
            timing_cache=timing_cache,
            allow_floating_point=allow_floating_point,
            refit=refit,
        )


def _build_alone(
    model: Path,
    run: RunDirectory | None,
    options: BuildOptions,
    *,
    target: str,
    output: Path | None,
    timing_cache: Path | None,
    allow_floating_point: bool,
    refit: bool,
) -> tuple[EngineRecord, Path]:
    if run is not None and output is not None:
        raise InvalidInputError(
            "The engine of a run is written into the run; leave --output out, or give the ONNX "
            "file instead of the run."
        )
    onnx = model if run is None else _exported(run, target)
    if output is not None:
        check_output_folder(output, "--output")
    if timing_cache is not None:
        check_output_file(timing_cache, "--timing-cache", inputs=[onnx])
    check_onnx_file(onnx)
    device = _device(onnx, build_command(model, options, _extra(target, output, refit=refit)))
    stage, folder_in_run = f"build/{device.slug}/{target}", engine_folder(device, target)
    if run is not None:
        # The engine that is there stays one until the new one is proved: only the events tell.
        note_started(run.root, stage)
        folder = run.path(folder_in_run)
    else:
        folder = output or onnx.parent / "engines" / device.slug / onnx.stem
    begun = time.monotonic()
    root = None if run is None else run.root
    if refit:
        given = folder / PLAN if run is None else run.path(plan_for(run, device, target))
        with named_steps(stage, 1, directory=root) as begin:
            begin("refit")
            record, plan = _refit(given, onnx)
    elif run is not None and timing_cache is None:
        within = f"{folder_in_run.rpartition('/')[0]}/{_TIMING_CACHE}"
        with (
            _timing_cache_of(run, within) as cache,
            named_steps(stage, len(STEPS), directory=root) as begin,
        ):
            record, plan = _build(onnx, options, cache, device, begin)
    else:
        cache = timing_cache or folder.parent / _TIMING_CACHE
        with named_steps(stage, len(STEPS), directory=root) as begin:
            record, plan = _build(onnx, options, cache, device, begin)
    proved = record.precision.proved or allow_floating_point or target in BASELINES
    if run is not None:
        written = _record_engine(run, folder_in_run, record, plan if proved else None)
        if proved:
            run.finish_stage(stage, seconds=time.monotonic() - begun)
        else:
            note_finished(run.root, stage)
        return record, written
    if not proved:
        write_json(folder / REJECTED, record.model_dump(mode="json"))
        return record, folder / REJECTED
    write_bytes(folder / PLAN, plan)
    write_json(folder / RECORD, record.model_dump(mode="json"))
    (folder / REJECTED).unlink(missing_ok=True)
    return record, folder / PLAN


@contextlib.contextmanager
def _timing_cache_of(run: RunDirectory, relative: str) -> Iterator[Path]:
    """A copy of a run's timing cache, for TensorRT to extend in place; it becomes the run's.

    What the run did not record is left out of it, and no link is followed: timings are measured
    again. The lock that Polygraphy leaves beside the copy vanishes with its folder.
    """
    place = run.path(relative)
    with atomic_group(place, functools.partial(run.announce, relative)) as copy:
        if run.is_intact(relative):
            shutil.copyfile(place, copy)
        yield copy
        copy.with_name(f"{copy.name}.lock").unlink(missing_ok=True)
    run.record_files(relative)


def _record_engine(
    run: RunDirectory, inside: str, record: EngineRecord, plan: bytes | None
) -> Path:
    """Write an engine into a run, or why there is none; each file with its digest in ``run.json``.

    Returns:
        The path of the plan, or of the record of what was rejected.
    """
    rejected = f"{inside}/{REJECTED}"
    if plan is None:
        run.write_json(rejected, record.model_dump(mode="json"))
        return run.path(rejected)
    run.write_bytes(f"{inside}/{PLAN}", plan)
    run.write_json(f"{inside}/{RECORD}", record.model_dump(mode="json"))
    run.forget_files(rejected)
    run.path(rejected).unlink(missing_ok=True)
    return run.path(f"{inside}/{PLAN}")


def build_command(model: Path, options: BuildOptions, extra: Sequence[str] = ()) -> str:
    """The command line that builds with these options.

    >>> build_command(Path("run"), BuildOptions(max_batch=64))
    'mimiq-deploy build run --engine trt --max-batch 64'
    """
    words = ["mimiq-deploy", "build", str(model), "--engine", "trt", *extra]
    # The default of one option depends on these two.
    sizes = BuildOptions(min_batch=options.min_batch, max_batch=options.max_batch)
    defaults = BuildOptions(opt_batch=sizes.opt_batch)
    for name, value in options.model_dump(mode="json").items():
        if value != getattr(defaults, name):
            option = f"--{name.replace('_', '-')}"
            words += [option] if value is True else [option, str(value)]
    return shlex.join(words)


def _extra(target: str, output: Path | None, *, refit: bool) -> list[str]:
    words = [] if target == "trt" else ["--target", target]
    words += [] if output is None else ["--output", str(output)]
    return [*words, "--refit"] if refit else words


def _exported(run: RunDirectory, target: str) -> Path:
    return run.existing(
        onnx_path(target), made_by=f"mimiq-deploy export {run.root} --target {target}"
    )


def _device(onnx: Path, command: str) -> CudaDevice:
    """The GPU of this machine; what is missing for it is the device's business.

    Raises:
        DeviceNeededError: No TensorRT, no Polygraphy, no cuda-python, no GPU; or they are there and
            cannot be loaded, or are of a version that is not known.
    """
    try:
        import_tensorrt()
        import_polygraphy()
        return CudaRuntime().device()
    except MissingDependencyError as error:
        raise DeviceNeededError(
            f"TensorRT engines are built on the device, and {error.module} is not installed here.",
            str(onnx),
            f"pip install 'mimiq-deploy[{error.extra}]' && {command}",
        ) from error
    except EngineError as error:
        raise DeviceNeededError(str(error), str(onnx), command) from error


def _build(
    onnx: Path,
    options: BuildOptions,
    timing_cache: Path,
    device: CudaDevice,
    begin: Callable[[str], None],
) -> tuple[EngineRecord, bytes]:
    built = build_engine(onnx, options, timing_cache=timing_cache, begin=begin)
    record = EngineRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=device,
        libraries=_libraries(),
        onnx=str(onnx),
        onnx_sha256=sha256_of(onnx),
        options=options,
        profile=built.profile,
        timing_cache_sha256=sha256_of(timing_cache) if timing_cache.is_file() else None,
        build_seconds=round(built.seconds, 3),
        weights="stripped" if options.strip_weights else "in the plan",
        plan=_file_record(built.plan),
        precision=built.precision,
    )
    return record, built.plan


def _refit(given: Path, onnx: Path) -> tuple[EngineRecord, bytes]:
    folder = given.parent
    record = read_engine_record(given) if given.is_file() else None
    if record is None:
        raise InvalidInputError(
            f"Expected an engine to refit in {folder}, and there is none; build it without --refit."
        )
    # TensorRT would take other weights, and compute with some of those that it was built from.
    if not record.options.refittable and record.onnx_sha256 != sha256_of(onnx):
        raise InvalidInputError(
            f"The engine in {folder} takes the weights that it was built from only, and {onnx} has "
            "others; build it again, with --refittable if its weights shall change."
        )
    host_code = check_host_code(given, record)
    plan = refit_plan(read_plan(given, record), onnx, host_code=host_code)
    changes = {
        "weights": f"refitted from {sha256_of(onnx)}",
        "onnx": str(onnx),
        "onnx_sha256": sha256_of(onnx),
        "plan": _file_record(plan),
    }
    return record.model_copy(update=changes), plan


def _libraries() -> dict[str, str]:
    tensorrt = import_tensorrt().__version__
    return {"tensorrt": tensorrt, **library_versions(["polygraphy", "cuda-python"])}


def _file_record(content: bytes) -> FileRecord:
    import hashlib

    return FileRecord(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
