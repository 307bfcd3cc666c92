"""Exporting a run: the quantized model for a target, the full-precision baseline, references."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from mimiq_runtime.errors import InvalidInputError, RunDirectoryError
from mimiq_runtime.reference import REFERENCE_IMAGES, reference_path
from mimiq_runtime.scope import Scope

if TYPE_CHECKING:
    from torch import nn

    from mimiq_export.provenance import ExportProvenance
    from mimiq_export.record import ExportRecord
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["BASELINE", "HALF_BASELINE", "export_run", "exported_scope", "onnx_path"]

BASELINE = "fp32"
"""Name of the export that holds the full-precision model."""

HALF_BASELINE = "fp16"
"""Name of the export that holds it in half precision, where a target of that name exists."""


def onnx_path(target: str) -> str:
    """Path of an exported model inside its run."""
    return f"export/{target}/model.onnx"


def exported_scope(run: RunDirectory, target: str) -> Scope:
    """Which products an export quantizes, by its ``export.json``; ``full`` where that is silent."""
    path = run.path(f"export/{target}/export.json")
    try:
        recorded = json.loads(path.read_text()).get("scope") if path.is_file() else None
        return Scope(recorded or Scope.FULL)
    except (AttributeError, ValueError) as error:
        raise RunDirectoryError(f"{path} is damaged; export {target} again.") from error


def export_run(run: RunDirectory, target: str, *, scope: Scope | None = None) -> ExportRecord:
    """Write a run's ONNX for a target, beside the full-precision ONNX of the same model.

    What the quantized torch model answers to some of the run's own images is written too, so
    that a device without torch can check its engine.

    Args:
        run: A calibrated run.
        target: Name of the target.
        scope: Which products are quantized; the target's own choice if None.

    Returns:
        What was exported for the target.

    Raises:
        InvalidInputError: There is no such target, the run is not calibrated, or a scope is given
            for the full-precision model.
        OnnxModelError: The exported graph is not valid.
    """
    from mimiq_calib.conversion.scope import limit_scope
    from mimiq_calib.run_models import load_student, load_teacher
    from mimiq_export.targets.registry import get_target

    begun = time.monotonic()
    stage = f"export/{target}"
    chosen = get_target(target)  # what is wrong is refused before any work
    if target == BASELINE and scope is not None:
        raise InvalidInputError(f"{BASELINE} quantizes nothing; leave the scope out.")
    scope = scope or chosen.default_scope
    teacher = load_teacher(run)
    run.begin_stage(stage)
    if target == BASELINE:
        record = _write(run, teacher, BASELINE, bits=BASELINE)
    else:
        if onnx_path(BASELINE) not in run.manifest.files:
            _write(run, teacher, BASELINE, bits=BASELINE)
        student = load_student(run)
        limit_scope(student, scope)
        record = _write(run, student, target, bits=run.manifest.bits, scope=scope)
        _write_reference(run, teacher, student, target)
    run.finish_stage(stage, seconds=time.monotonic() - begun)
    return record


def _write(
    run: RunDirectory, model: nn.Module, target: str, *, bits: str, scope: Scope | None = None
) -> ExportRecord:
    from mimiq_export.export_run import export_model, write_onnx

    graph = export_model(model, target=target, provenance=_provenance(run, bits))
    relative = onnx_path(target)
    record = write_onnx(graph, run.path(relative)).model_copy(update={"scope": scope})
    folder = relative.rpartition("/")[0]
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

    first_shard = "images/shard-00000.safetensors"
    pixels = run.read_tensors(first_shard, made_by="mimiq-deploy calibrate")["images"]
    pixels = np.ascontiguousarray(pixels[:REFERENCE_IMAGES])
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
