"""The model that is packed: which files of a run, what they are, and that they are intact."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mimiq_deploy.exporting import onnx_path
from mimiq_runtime.classifier_checks import check_onnx_file
from mimiq_runtime.engine_record import PLAN, recorded_engine
from mimiq_runtime.errors import InvalidInputError, RunDirectoryError
from mimiq_runtime.input_form import InputForm
from mimiq_runtime.scope import Scope
from mimiq_runtime.session import target_of
from mimiq_runtime.strict_json import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_runtime.engine_record import EngineRecord
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["PackedModel", "find_model"]

_BUILT = "trt"
_WEIGHTS = re.compile(r"model\.onnx\.[0-9a-f]+\.data")


@dataclass(frozen=True)
class PackedModel:
    """What is packed for an engine.

    Attributes:
        engine: Name of the engine.
        target: The export that the engine reads.
        path: The file that the engine opens.
        beside: Files that ``path`` refers to by name, in the same folder.
        scope: Which products are quantized; None where the export does not say.
        takes: The form of the images that the model takes.
        packed_int4: Whether weights are stored as ONNX INT4.
        plan: The record of a TensorRT plan; None for an ONNX file.
    """

    engine: str
    target: str
    path: Path
    beside: tuple[Path, ...]
    scope: Scope | None
    takes: InputForm
    packed_int4: bool
    plan: EngineRecord | None

    @property
    def input_name(self) -> str:
        """Name of the model's input, as every export writes it."""
        return "images" if self.takes is InputForm.NORMALISED else "pixels"


def find_model(run: RunDirectory, engine: str, *, device: str | None = None) -> PackedModel:
    """Find the model of a run that an engine opens; no engine and no GPU is needed for that.

    Args:
        run: The run.
        engine: One of :func:`mimiq_runtime.session.known_engines`.
        device: For ``trt``, the folder of the device whose plan is meant, such as
            ``nvidia-h200-sm90``; the only one if None.

    Raises:
        RunDirectoryError: It was not exported, not built, or a file was changed since.
        OnnxModelError: The file takes weights from elsewhere.
        InvalidInputError: Several devices have a plan and none is named, or the plan cannot run
            single pictures.
    """
    target = target_of(engine)
    onnx = onnx_path(target)
    if engine != _BUILT and device is not None:
        raise InvalidInputError(f"--device names a TensorRT plan, and {engine} opens an ONNX file.")
    export = _read_export(run, target)
    if engine == _BUILT:
        relative, plan = _find_plan(run, target, device)
        files = [relative]
    else:
        plan = None
        folder = onnx.rpartition("/")[0]
        files = [onnx, *(f"{folder}/{name}" for name in export.external_data)]
    made_by = f"mimiq-deploy export {run.root} --target {target}"
    first, *others = (run.existing(file, made_by=made_by) for file in files)
    if plan is None:
        # On the device nobody looks whether it takes its weights from elsewhere.
        check_onnx_file(first)
    return PackedModel(
        engine=engine,
        target=target,
        path=first,
        beside=tuple(others),
        scope=export.scope,
        takes=export.takes,
        packed_int4=export.packed_int4,
        plan=plan,
    )


class _Export(NamedTuple):
    """What ``export.json`` says that a bundle has to know; the usual where it is silent."""

    scope: Scope | None
    takes: InputForm
    external_data: list[str]
    packed_int4: bool


def _read_export(run: RunDirectory, target: str) -> _Export:
    # Not by its schema, which is defined beside onnx-ir: a device that packs its plan has none.
    path = run.finished(f"export/{target}/export.json", made_by=f"mimiq-deploy export {run.root}")
    try:
        content = {} if path is None else read_json(path)
        scope = content.get("scope")
        return _Export(
            scope=None if scope is None else Scope(scope),
            takes=InputForm(content.get("input", InputForm.NORMALISED)),
            external_data=[_weights_name(name) for name in content.get("external_data", {})],
            packed_int4=any(row.get("stored_as") == "int4" for row in content.get("quantized", [])),
        )
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise RunDirectoryError(f"{path} is damaged; export {target} again.") from error


def _weights_name(name: str) -> str:
    """The name, or ValueError where our export would not have given it.

    The file lies beside the runner in a bundle: called ``run.py``, it would be run.
    """
    if _WEIGHTS.fullmatch(name) is None:
        raise ValueError(f"{name!r} is no file of weights")
    return name


def _find_plan(run: RunDirectory, target: str, device: str | None) -> tuple[str, EngineRecord]:
    plans = {
        path.split("/")[1]: path
        for path in run.manifest.files
        if path.startswith("engines/") and path.endswith(f"/{target}/{PLAN}")
    }
    build = f"mimiq-deploy build {run.root} --engine trt"
    if not plans or (device is not None and device not in plans):
        built = f"built for {', '.join(plans)}" if plans else "none was built"
        raise RunDirectoryError(
            f"Expected a TensorRT plan{f' for {device}' if device else ''} in {run.root}, and "
            f"{built}: run {build} on the device first, or bundle the ONNX for --engine ort-trt."
        )
    if device is None and len(plans) > 1:
        raise InvalidInputError(
            f"{run.root} has plans for {', '.join(plans)}; say with --device which one to pack."
        )
    relative = plans[device] if device is not None else next(iter(plans.values()))
    record = recorded_engine(run, relative)
    if record.weights == "stripped":
        raise InvalidInputError(
            f"{relative} was built without its weights; run {build} --refit on the device first."
        )
    if record.options.min_batch > 1:
        raise InvalidInputError(
            f"{relative} takes batches of {record.options.min_batch} and more, and a bundle "
            "classifies single pictures; build it with --min-batch 1."
        )
    return relative, record
