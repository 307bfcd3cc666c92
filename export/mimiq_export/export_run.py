"""From a torch model to an ONNX file: capture, the target's passes, metadata, checks, write."""

from __future__ import annotations

import glob
import hashlib
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from mimiq_export.capture import capture
from mimiq_export.fake_quantize import fake_quantizes
from mimiq_export.lint.linters import lint_model
from mimiq_export.options import PLAIN, ExportOptions
from mimiq_export.passes.metadata import METADATA_PREFIX, WriteMetadataPass
from mimiq_export.record import (
    ExportRecord,
    count_operators,
    list_floating_point_products,
    list_quantizers,
)
from mimiq_export.targets.registry import get_target
from mimiq_runtime.atomic import atomic_group, sha256_of
from mimiq_runtime.errors import OnnxModelError
from mimiq_runtime.input_form import input_form
from mimiq_runtime.manifest import FileRecord
from mimiq_runtime.named_steps import unseen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn

    from mimiq_export.provenance import ExportProvenance

__all__ = ["EXTERNAL_DATA_ABOVE", "STEPS", "export_model", "write_onnx"]

STEPS = ("capture", "passes", "check and write")
"""What :func:`export_model` and, last, :func:`write_onnx` tell that they begin."""

EXTERNAL_DATA_ABOVE = 2**31 - 2**24
"""Bytes of weights above which they get a file of their own.

Protobuf ends at 2 GiB, and the graph needs some of it.
"""


def export_model(
    model: nn.Module,
    *,
    target: str,
    provenance: ExportProvenance,
    options: ExportOptions = PLAIN,
    begin: Callable[[str], None] = unseen,
) -> ir.Model:
    """Turn a torch model into the graph that a target runs.

    Args:
        model: A student with calibrated quantizers, or a teacher for the target ``fp32``; in
            inference mode. It is not changed.
        target: Name of the target; see :func:`mimiq_export.targets.registry.get_target`.
        provenance: Written into the model's metadata; its preprocessing gives the input's size.
        options: Choices that go with the target.
        begin: Called with the name of each step when it begins.

    Raises:
        InvalidInputError: There is no such target, or an option does not go with it or with the
            model.
        UnsupportedModelError: torch cannot capture the model.
        OnnxModelError: A scale cannot be used, or the target leaves quantizers in the graph.
    """
    chosen = get_target(target)
    options.check(target)
    begin(STEPS[0])
    graph = capture(model, provenance.preprocessing.input_size, opset=chosen.opset)
    begin(STEPS[1])
    for graph_pass in (*chosen.passes, WriteMetadataPass(provenance, chosen.name)):
        graph = graph_pass(graph).model
    left = next(fake_quantizes(graph), None)
    if left is not None:
        raise OnnxModelError(
            f"The target {target} writes models without quantization, and {left.quantizer} is a "
            "quantizer: export the full-precision model instead."
        )
    for graph_pass in options.passes(provenance.preprocessing):
        graph = graph_pass(graph).model
    return graph


def write_onnx(
    model: ir.Model,
    path: Path,
    *,
    external_data_above: int = EXTERNAL_DATA_ABOVE,
    before_replace: Callable[[Path], None] = lambda temporary: None,
    begin: Callable[[str], None] = unseen,
) -> ExportRecord:
    """Check a model and write it; the file appears whole, with its weights, or not at all.

    Args:
        model: What :func:`export_model` returned.
        path: Where to write, usually ``model.onnx`` of a run's export folder.
        external_data_above: Models with more bytes of weights get a second file beside ``path``,
            named ``<path.name>.<digest>.data`` after its content, so that a new version never
            touches the weights that the old ``path`` refers to.
        before_replace: As for :func:`mimiq_runtime.atomic.atomic_path`.
        begin: Called with the name of the step when it begins.

    Returns:
        The content of ``export.json``.

    Raises:
        InvalidInputError: The folder cannot be written to.
        OnnxModelError: The model is not valid ONNX, or a constant of it is NaN or infinite.
    """
    begin(STEPS[2])
    _check_numbers(model)
    external: Path | None = None
    if sum(tensor.nbytes for tensor in _tensors(model)) > external_data_above:
        external = path.with_name(f"{path.name}.{_digest(model)}.data")
    with atomic_group(path, before_replace) as temporary:
        ir.save(model, temporary, external_data=external.name if external else None)
        _check(temporary)
    for stale in path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 16}.data"):
        if stale != external:
            stale.unlink()
    target = model.metadata_props.get(f"{METADATA_PREFIX}target", "")
    return ExportRecord(
        target=target,
        opset=model.opset_imports[""],
        input=input_form(model.metadata_props),
        onnx=_file_record(path),
        external_data={external.name: _file_record(external)} if external else {},
        operators=count_operators(model),
        quantized=list_quantizers(model),
        not_quantized=list_floating_point_products(model),
        lint=lint_model(model, target),
    )


def _check_numbers(model: ir.Model) -> None:
    for tensor in _tensors(model):
        array = tensor.numpy()
        if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            raise OnnxModelError(
                f"The exported model would hold NaN or infinity in {tensor.name}, and is not "
                "written: a weight or a scale is too large for its type; check the checkpoint, or "
                "export for a target in single precision, such as ort-cpu."
            )


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise OnnxModelError(f"The exported model is not valid ONNX: {error}") from error


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value


def _digest(model: ir.Model) -> str:
    digest = hashlib.sha256()
    for tensor in _tensors(model):
        digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()[:16]


def _file_record(path: Path) -> FileRecord:
    return FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)
