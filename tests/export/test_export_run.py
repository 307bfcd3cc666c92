from __future__ import annotations

import errno
import hashlib
import json
import os
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from _helpers.onnx_graphs import copy_of, run_ort
from _helpers.tiny_students import (
    Exported,
    calibrated_student,
    images,
    tiny_student,
    tiny_teacher,
    tiny_vit,
)

from mimiq_calib.conversion.convert import expose_attention
from mimiq_calib.recipe import QuantizationSettings
from mimiq_export.export_run import export_model, write_onnx
from mimiq_export.options import ExportOptions
from mimiq_export.record import ExportRecord, list_floating_point_products
from mimiq_export.targets.registry import TARGETS, get_target
from mimiq_runtime.errors import InvalidInputError, OnnxModelError
from mimiq_runtime.manifest import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_export.provenance import ExportProvenance


def test_the_file_tells_where_it_came_from(
    exported_w4a4: Exported, tmp_path: Path, provenance: ExportProvenance
) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(exported_w4a4.graph, path)
    proto = onnx.load(path)
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    preprocessing = facts.pop("mimiq_deploy.preprocessing")
    assert facts == {
        "mimiq_deploy.version": "0.1.0",
        "mimiq_deploy.run": "9f86d081884c7d65",
        "mimiq_deploy.model": "vit_tiny_patch16_224",
        "mimiq_deploy.bits": "w4a4",
        "mimiq_deploy.recipe": "quick",
        "mimiq_deploy.target": "ort-cpu",
    }
    assert Preprocessing.model_validate_json(preprocessing) == provenance.preprocessing
    assert (proto.producer_name, proto.producer_version) == ("mimiq-deploy", "0.1.0")
    assert "w4a4" in proto.doc_string


@pytest.mark.parametrize("external_data_above", [2**31, 1000], ids=["one-file", "two-files"])
@pytest.mark.parametrize(
    ("options", "own"),
    [
        (ExportOptions(), {}),
        (ExportOptions(packed_int4=True), {}),
        (ExportOptions(with_preprocessing=True), {"input": "pixels"}),
        (ExportOptions(packed_int4=True, with_preprocessing=True), {"input": "pixels"}),
    ],
    ids=["plain", "packed-int4", "preprocessing", "both"],
)
def test_options_keep_what_the_file_tells(
    options: ExportOptions,
    own: dict[str, str],
    external_data_above: int,
    exported_w4a4: Exported,
    tmp_path: Path,
    provenance: ExportProvenance,
) -> None:
    graph = copy_of(exported_w4a4.graph)
    for graph_pass in options.passes(provenance.preprocessing):
        graph = graph_pass(graph).model
    write_onnx(graph, tmp_path / "model.onnx", external_data_above=external_data_above)
    # As an engine sees it, which reads the weights from the second file.
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    expected = {
        "version": "0.1.0",
        "run": "9f86d081884c7d65",
        "model": "vit_tiny_patch16_224",
        "bits": "w4a4",
        "recipe": "quick",
        "target": "ort-cpu",
        "preprocessing": provenance.preprocessing.model_dump_json(),
    }
    assert facts == {f"mimiq_deploy.{key}": value for key, value in (expected | own).items()}
    assert session.get_modelmeta().producer_name == "mimiq-deploy"


def test_the_record_tells_what_was_written(exported_w4a4: Exported, tmp_path: Path) -> None:
    path = tmp_path / "export" / "ort-cpu" / "model.onnx"
    record = write_onnx(exported_w4a4.graph, path)
    assert record.onnx.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record.onnx.bytes == path.stat().st_size
    assert (record.target, record.opset, record.external_data) == ("ort-cpu", 20, {})
    assert record.operators["QuantizeLinear"] == 18
    assert record.operators["MatMul"] == 13
    assert record.not_quantized == []
    assert ExportRecord.model_validate(json.loads(record.model_dump_json())) == record
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_the_record_has_a_row_for_each_quantizer(exported_w4a4: Exported, tmp_path: Path) -> None:
    record = write_onnx(exported_w4a4.graph, tmp_path / "model.onnx")
    rows = {row.quantizer: row for row in record.quantized}
    assert len(rows) == len(record.quantized) == 28
    weight = rows["blocks.0.attn.qkv.weight_quantizer"]
    assert (weight.kind, weight.qmin, weight.qmax, weight.axis) == ("weight", -8, 7, 1)
    assert (weight.code_min, weight.code_max) == (-8, 7)
    assert weight.used_by == ["blocks.0.attn.qkv/MatMul"]
    probabilities = rows["blocks.1.attn.probability_quantizer"]
    assert (probabilities.kind, probabilities.qmin, probabilities.qmax) == ("activation", 0, 15)
    assert (probabilities.axis, probabilities.code_min) == (None, None)
    assert rows["head.input_quantizer"].used_by == ["head/Gemm"]


def test_products_in_floating_point_are_listed_with_their_reason(
    exported_teacher: Exported, provenance: ExportProvenance
) -> None:
    teacher = expose_attention(tiny_vit(depth=1))
    settings = QuantizationSettings(weight_bits=4, activation_bits=4, quantize_images=False)
    student = calibrated_student(teacher, settings)
    (product,) = list_floating_point_products(
        export_model(student, target="ort-cpu", provenance=provenance)
    )
    assert (product.node, product.op_type) == ("patch_embed.proj/Conv", "Conv")
    assert product.reason == "the image input stays in floating point."
    rows = {row.node: row for row in list_floating_point_products(exported_teacher.graph)}
    assert len(rows) == 14
    assert "the weight blocks.0.mlp.fc1.weight stays" in rows["blocks.0.mlp.fc1/MatMul"].reason


def test_the_same_model_gives_the_same_bytes(
    exported_w4a4: Exported, tmp_path: Path, provenance: ExportProvenance
) -> None:
    again = export_model(tiny_student(4, 4), target="ort-cpu", provenance=provenance)
    first = write_onnx(exported_w4a4.graph, tmp_path / "first.onnx")
    assert write_onnx(again, tmp_path / "second.onnx").onnx == first.onnx


def test_an_invalid_model_never_replaces_a_valid_one(
    exported_w4a4: Exported, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(exported_w4a4.graph, path)
    before = path.read_bytes()
    broken = ir.from_proto(ir.to_proto(exported_w4a4.graph))
    broken.graph.outputs[0].shape = ir.Shape(["batch", 11])
    for limit in (2**31, 0):
        with pytest.raises(OnnxModelError, match="not valid ONNX"):
            write_onnx(broken, path, external_data_above=limit)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_large_models_keep_their_weights_beside_the_file(
    exported_w4a4: Exported, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    small = write_onnx(exported_w4a4.graph, path)
    record = write_onnx(exported_w4a4.graph, path, external_data_above=1000)
    ((name, data),) = record.external_data.items()
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", name}
    assert data.bytes == (tmp_path / name).stat().st_size > 50_000
    assert record.onnx.bytes < small.onnx.bytes - 50_000
    feeds = {"images": images(2).numpy()}
    np.testing.assert_array_equal(run_ort(path, feeds)[0], run_ort(exported_w4a4.graph, feeds)[0])


def test_a_write_that_fails_leaves_the_weights_of_the_same_model_alone(
    exported_w4a4: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights file is named by its content: writing the same again must not go through it."""
    path = tmp_path / "model.onnx"
    write_onnx(exported_w4a4.graph, path, external_data_above=1000)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    save = ir.save

    def save_half(model: ir.Model, target: Path, *, external_data: str) -> None:
        save(model, target, external_data=external_data)
        (target.parent / external_data).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ir, "save", save_half)
    with pytest.raises(InvalidInputError, match="No space left"):
        write_onnx(exported_w4a4.graph, path, external_data_above=1000)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_new_version_takes_its_old_weights_away(
    exported_w4a4: Exported, exported_teacher: Exported, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    first = write_onnx(exported_w4a4.graph, path, external_data_above=1000)
    second = write_onnx(exported_teacher.graph, path, external_data_above=1000)
    assert set(first.external_data).isdisjoint(second.external_data)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", *second.external_data}
    write_onnx(exported_w4a4.graph, path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_the_users_mistake(
    exported_w4a4: Exported, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="Cannot write"):
        write_onnx(exported_w4a4.graph, tmp_path / "file" / "model.onnx")


def test_the_baseline_refuses_a_quantized_model(provenance: ExportProvenance) -> None:
    with pytest.raises(OnnxModelError, match="export the full-precision model instead"):
        export_model(tiny_student(8, 8), target="fp32", provenance=provenance)


def test_an_unknown_target_is_refused_with_those_there_are(provenance: ExportProvenance) -> None:
    with pytest.raises(InvalidInputError, match=r"no target 'tpu'; choose one of ort-cpu, .*fp32"):
        export_model(tiny_teacher(), target="tpu", provenance=provenance)


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_found_by_their_name(name: str) -> None:
    assert get_target(name).name == name
