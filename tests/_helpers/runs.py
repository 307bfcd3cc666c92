"""A finished run directory, made by hand: no calibration, no torch.

Its model tells red, green and blue pictures apart: the logits are ``LOGIT * mean(channel)``, and
mean 0.5 and std 0.5 make +1 of a full channel and -1 of an empty one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_runtime.manifest import ModelRecord, Preprocessing, RunManifest
from mimiq_runtime.quantization_table import QuantizationTable, QuantizedTensor, TensorKind
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ["red", "green", "blue"]
LOGIT = 4.0
SIZE = 8
ONNX_PATH = "export/ort-cpu/model.onnx"


def make_run(
    root: Path, *, labels: list[str] | None = LABELS, exported: bool = True, classes: int = 3
) -> RunDirectory:
    """A run with the stages calibrate and, unless told otherwise, export."""
    run = RunDirectory.create(root, make_manifest(labels=labels, classes=classes))
    run.write_tensors(run.QUANTIZED, {"head.weight": np.eye(3, dtype=np.float32)})
    run.write_json(run.TABLE, make_table().model_dump(mode="json"))
    run.finish_stage("calibrate", seconds=12.5)
    if exported:
        write_classifier(run.path(ONNX_PATH))
        run.record_files(ONNX_PATH)
        run.finish_stage("export", seconds=1.5)
    return run


def make_manifest(*, labels: list[str] | None = LABELS, classes: int = 3) -> RunManifest:
    return RunManifest(
        created="2026-01-02T03:04:05+00:00",
        model=ModelRecord(
            name="tiny_colours",
            arguments={},
            num_classes=classes,
            weights="colours.safetensors",
            weights_sha256="0" * 64,
            labels=labels,
        ),
        preprocessing=Preprocessing(
            input_size=(3, SIZE, SIZE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
        recipe={"name": "quick", "quantization": {"weight_bits": 4, "activation_bits": 8}},
        seed=7,
        environment={"python": "3.11.7"},
    )


def make_table() -> QuantizationTable:
    weight: dict[str, Any] = {"kind": TensorKind.WEIGHT, "axis": 0}
    activation: dict[str, Any] = {"kind": TensorKind.ACTIVATION, "axis": None}
    int4: dict[str, Any] = {"bits": 4, "qmin": -8, "qmax": 7}
    int8: dict[str, Any] = {"bits": 8, "qmin": -128, "qmax": 127}
    skewed: dict[str, Any] = {"bits": 8, "qmin": -16, "qmax": 239, "zero_point": -112}
    return QuantizationTable(
        tensors=[
            QuantizedTensor(name="a.input", **activation, **int8, scale=0.5),
            QuantizedTensor(name="a.weight", **weight, **int4, scale=[0.25, 0.002, 0.125]),
            QuantizedTensor(name="b.input", **activation, **skewed, scale=0.03),
            QuantizedTensor(name="b.weight", **weight, **int4, scale=[0.75]),
            QuantizedTensor(name="head.weight", **weight, **int8, scale=[0.01]),
        ]
    )


def write_classifier(path: Path) -> None:
    """A MatMul on quantized operands (its weight transposed) and a Gemm on floating point."""
    import onnx
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("QuantizeLinear", ["flat", "step", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "step", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_step", "zero"], ["dequantized"]),
        helper.make_node("Transpose", ["dequantized"], ["transposed"]),
        helper.make_node("MatMul", ["values", "transposed"], ["hidden"], name="body/MatMul"),
        helper.make_node("Gemm", ["hidden", "identity"], ["logits"], name="head/Gemm"),
    ]
    constants = {
        "step": np.float32(1 / 127),
        "zero": np.int8(0),
        "weight": np.diag(np.full(3, 64, dtype=np.int8)),
        "weight_step": np.float32(LOGIT / 64),
        "identity": np.eye(3, dtype=np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph,
        producer_name="tests",
        producer_version="1",
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    helper.set_model_props(model, {"mimiq.bits": "w4a8"})
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
