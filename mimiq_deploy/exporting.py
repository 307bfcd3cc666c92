"""Exporting a run: the quantized model for a target, the full-precision baseline, references."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from mimiq_runtime.errors import InvalidInputError, RunDirectoryError
from mimiq_runtime.named_steps import named_steps
from mimiq_runtime.reference import REFERENCE_IMAGES, reference_path
from mimiq_runtime.run_directory import writes_run
from mimiq_runtime.run_images import read_shard, shards_of
from mimiq_runtime.scope import Scope
from mimiq_runtime.strict_json import read_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from mimiq_export.options import ExportOptions
    from mimiq_export.provenance import ExportProvenance
    from mimiq_export.record import ExportRecord
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["BASELINE", "BASELINES", "HALF_BASELINE", "export_run", "exported_scope", "onnx_path"]

BASELINE = "fp32"
"""Name of the export that holds the full-precision model."""

HALF_BASELINE = "fp16"
"""Name of the export that holds it in half precision, for engines that are fast in it."""

BASELINES = (BASELINE, HALF_BASELINE)
"""Exports of the model without quantization."""

REFERENCE = "reference logits"
"""The last step of an export, which computes them."""


def onnx_path(target: str) -> str:
    """Path of an exported model inside its run."""
    return f"export/{target}/model.onnx"


def exported_scope(run: RunDirectory, target: str) -> Scope:
    """Which products an export quantizes, by its ``export.json``; ``full`` where that is silent."""
    path = run.finished(f"export/{target}/export.json", made_by=f"mimiq-deploy export {run.root}")
    try:
        recorded = None if path is None else read_json(path).get("scope")
        return Scope(recorded or Scope.FULL)
    except (AttributeError, OSError, ValueError) as error:
        raise RunDirectoryError(f"{path} is damaged; export {target} again.") from error


@writes_run("export")
def export_run(
    run: RunDirectory,
    target: str,
    *,
    scope: Scope | None = None,
    packed_int4: bool = False,
    with_preprocessing: bool = False,
) -> ExportRecord:
    """Write a run's ONNX for a target, beside the full-precision ONNX of the same model.

    For engines that are fast in half precision, the full-precision model is written in it, too.

    What the quantized torch model answers to some of the run's own images is written too, so
    that a device without torch can check its engine.

    Args:
        run: A calibrated run.
        target: Name of the target.
        scope: Which products are quantized; the target's own choice if None.
        packed_int4: Store weights of at most 4 bits two in a byte.
        with_preprocessing: Let the model take uint8 pixels (N, H, W, C) and normalise them. The
            full-precision ONNX beside it does not change.

    Returns:
        What was exported for the target.

    Raises:
        InvalidInputError: There is no such target, the run is not calibrated, a scope is given for
            the full-precision model, or an option does not go with the target or the model.
        OnnxModelError: The exported graph is not valid.
    """
    from mimiq_calib.conversion.scope import limit_scope
    from mimiq_calib.run_models import load_student, load_teacher
    from mimiq_export.export_run import STEPS
    from mimiq_export.options import PLAIN, ExportOptions
    from mimiq_export.targets.registry import get_target

    begun = time.monotonic()
    stage = f"export/{target}"
    # What is wrong is refused before any work.
    chosen = get_target(target)
    options = ExportOptions(packed_int4=packed_int4, with_preprocessing=with_preprocessing)
    options.check(target)
    if target in BASELINES and scope is not None:
        raise InvalidInputError(f"{target} quantizes nothing; leave the scope out.")
    scope = scope or chosen.default_scope
    teacher = load_teacher(run)
    run.begin_stage(stage)
    if target in BASELINES:
        with named_steps(stage, len(STEPS), directory=run.root) as begin:
            record = _write(run, teacher, target, target, options, begin=begin)
    else:
        baselines = _missing_baselines(run, half=chosen.half_baseline)
        steps = len(STEPS) * (len(baselines) + 1) + 1
        with named_steps(stage, steps, directory=run.root) as begin:
            for baseline in baselines:
                _write(run, teacher, baseline, baseline, PLAIN, begin=begin)
            student = load_student(run)
            limit_scope(student, scope)
            bits = run.manifest.bits
            record = _write(run, student, target, bits, options, begin=begin, scope=scope)
            begin(REFERENCE)
            _write_reference(run, teacher, student, target)
    run.finish_stage(stage, seconds=time.monotonic() - begun)
    return record


def _missing_baselines(run: RunDirectory, *, half: bool) -> list[str]:
    """Which full-precision models are yet to be exported."""
    # What is written last of it: an export that was interrupted is made again.
    return [
        name
        for name in (BASELINES if half else (BASELINE,))
        if f"export/{name}/export.json" not in run.manifest.files
    ]


def _write(
    run: RunDirectory,
    model: nn.Module,
    target: str,
    bits: str,
    options: ExportOptions,
    *,
    begin: Callable[[str], None],
    scope: Scope | None = None,
) -> ExportRecord:
    from mimiq_export.export_run import export_model, write_onnx

    def begin_step(name: str) -> None:
        begin(f"{name} of {target}")

    graph = export_model(
        model,
        target=target,
        provenance=_provenance(run, bits),
        options=options,
        begin=begin_step,
    )
    relative = onnx_path(target)
    folder = relative.rpartition("/")[0]
    weights = [name for name in run.manifest.files if name.startswith(f"{relative}.")]

    def announce(temporary: Path) -> None:
        run.announce(relative, temporary)
        run.forget_files(*weights)  # they may go; those of the new model are recorded below

    record = write_onnx(graph, run.path(relative), before_replace=announce, begin=begin_step)
    record = record.model_copy(update={"scope": scope})
    run.record_files(relative, *(f"{folder}/{name}" for name in record.external_data))
    run.write_json(f"{folder}/export.json", record.model_dump(mode="json"))
    return record


def _provenance(run: RunDirectory, bits: str) -> ExportProvenance:
    from mimiq_export.provenance import ExportProvenance

    manifest = run.manifest
    return ExportProvenance(
        version=version("mimiq-deploy"),
        run_id=manifest.files[run.QUANTIZED].sha256,
        model=manifest.model.name,
        bits=bits,
        recipe=manifest.recipe["name"],
        preprocessing=manifest.preprocessing,
    )


def _write_reference(
    run: RunDirectory, teacher: nn.Module, student: nn.Module, target: str
) -> None:
    import torch

    from mimiq_calib.engine_arithmetic.convert import in_engine_arithmetic
    from mimiq_calib.pixels import PixelScale

    pixels = np.ascontiguousarray(read_shard(run, shards_of(run)[0])[:REFERENCE_IMAGES])
    scale = PixelScale(run.manifest.preprocessing, torch.device("cpu"))
    with torch.inference_mode():
        images = scale.normalise(scale.to_unit(torch.from_numpy(pixels)))
        run.write_tensors(
            reference_path(target),
            {
                "images": pixels,
                "full_precision": teacher(images).numpy(),
                "fake_quantized": in_engine_arithmetic(student)(images).numpy(),
            },
        )
