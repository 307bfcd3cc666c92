"""Linters on models that other tools quantized: nothing may crash, and the known must be found."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
import pytest
from _helpers.tiny_students import images, tiny_teacher
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from mimiq_export.lint.linters import LINTERS, lint_file

if TYPE_CHECKING:
    from pathlib import Path

    from _helpers.tiny_students import Exported

S8, U8 = QuantType.QInt8, QuantType.QUInt8


class Pictures(CalibrationDataReader):
    def __init__(self) -> None:
        self._batches = iter([{"images": images(2).numpy()}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


@pytest.fixture(scope="module")
def single_precision(tmp_path_factory: pytest.TempPathFactory, exported_teacher: Exported) -> Path:
    assert exported_teacher.torch_model is tiny_teacher()
    path = tmp_path_factory.mktemp("foreign") / "fp32.onnx"
    ir.save(exported_teacher.graph, path)
    return path


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """The quantizers print advice, and warn."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.disable(before)


def rules(path: Path, target: str) -> set[str]:
    return {found.rule for found in lint_file(path, target)}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"zero-point", "bias-in-int32", "quantized-residual"}),
        (
            {"activation_type": U8, "weight_type": S8, "per_channel": True},
            {"uint8-codes", "zero-point", "bias-in-int32"},
        ),
        (
            {
                "activation_type": S8,
                "weight_type": S8,
                "extra_options": {"ActivationSymmetric": True, "QuantizeBias": False},
            },
            {"quantized-residual", "single-precision-product"},
        ),
        ({"quant_format": QuantFormat.QOperator}, {"operator-unknown"}),
    ],
    ids=["defaults", "u8s8", "symmetric", "operators"],
)
def test_models_of_onnx_runtime(
    single_precision: Path, arguments: dict[str, Any], expected: set[str], tmp_path: Path
) -> None:
    path = tmp_path / "quantized.onnx"
    quantize_static(single_precision, path, Pictures(), **arguments)
    found = rules(path, "trt")
    assert expected <= found
    assert ("zero-point" in found) == ("extra_options" not in arguments)
    for target in LINTERS:
        lint_file(path, target)


def test_a_dynamically_quantized_model(single_precision: Path, tmp_path: Path) -> None:
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(single_precision, path)
    assert rules(path, "trt") == {"operator-unknown"}
    assert rules(path, "openvino") == {"dynamic-product"}
    assert rules(path, "ort-cuda") == {"no-cuda-kernel"}
    assert rules(path, "ort-cpu") == set()


def test_models_of_nncf(single_precision: Path, tmp_path: Path) -> None:
    nncf = pytest.importorskip("nncf", reason="NNCF is not installed (development group)")
    dataset = nncf.Dataset([{"images": images(2).numpy()}])
    quantized = nncf.quantize(onnx.load(single_precision), dataset, subset_size=1)
    path = tmp_path / "nncf.onnx"
    onnx.save(quantized, path)
    found = {target: rules(path, target) for target in LINTERS}
    # It stores attention probabilities as uint8, quantizes residuals and transposes weights late.
    assert {"uint8-codes", "quantized-residual", "layout-before-product"} <= found["trt"]
    assert "layout-before-product" in found["ort-cpu"]


def test_a_model_without_shapes(single_precision: Path, tmp_path: Path) -> None:
    """Even where no shape can be inferred."""
    path = tmp_path / "quantized.onnx"
    quantize_static(single_precision, path, Pictures())
    model = onnx.load(path)
    del model.graph.value_info[:]
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    for target in LINTERS:
        lint_file(path, target)
    assert "zero-point" in rules(path, "trt")
