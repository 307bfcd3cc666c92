"""Models that take uint8 pixels, by hand: what the metadata says, and what a session then takes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mimiq_runtime.benchmark import benchmark_sessions
from mimiq_runtime.errors import InvalidInputError, OnnxModelError
from mimiq_runtime.input_form import INPUT_METADATA, InputForm, input_form
from mimiq_runtime.session import open_session

if TYPE_CHECKING:
    from pathlib import Path

# Those that open ONNX files on a CPU.
ENGINES = ("ort-cpu", "openvino")
SHAPES = {TensorProto.UINT8: ("N", 4, 6, 3), TensorProto.FLOAT: ("N", 3, 4, 6)}


def save_model(path: Path, dtype: int, form: str | None) -> Path:
    """Sums of the channels."""
    axes = [1, 2] if dtype == TensorProto.UINT8 else [2, 3]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["float", "axes"], ["y"], keepdims=0),
        ],
        "sums",
        [helper.make_tensor_value_info("x", dtype, SHAPES[dtype])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor("axes", TensorProto.INT64, [2], axes)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if form is not None:
        helper.set_model_props(model, {INPUT_METADATA: form})
    onnx.save(model, path)
    return path


def pixels(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, 4, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_session_takes_pixels_where_the_file_says_so(engine: str, tmp_path: Path) -> None:
    path = save_model(tmp_path / "model.onnx", TensorProto.UINT8, "pixels")
    with open_session(engine, path) as session:
        assert session.info.takes is InputForm.PIXELS
        assert session.info.input_shape == (None, 4, 6, 3)
        np.testing.assert_array_equal(session.run(pixels(2)), pixels(2).sum(axis=(1, 2)))
        with pytest.raises(InvalidInputError, match=r"uint8 images of shape \(any, 4, 6, 3\)"):
            session.run(np.zeros((2, 4, 6, 3), dtype=np.float32))
        with pytest.raises(InvalidInputError, match="uint8 images"):
            session.run(pixels(2).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", [None, "normalised"])
def test_without_a_word_a_model_takes_normalised_images(
    engine: str, tmp_path: Path, form: str | None
) -> None:
    path = save_model(tmp_path / "model.onnx", TensorProto.FLOAT, form)
    with open_session(engine, path) as session:
        assert session.info.takes is InputForm.NORMALISED
        assert session.run(np.ones((1, 3, 4, 6), dtype=np.float32)).tolist() == [[24.0] * 3]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("dtype", "form", "expected"),
    [
        (TensorProto.UINT8, None, r"(tensor\(float\)|f32) of shape \(N, C, H, W\)"),
        (TensorProto.FLOAT, "pixels", r"(tensor\(uint8\)|u8) of shape \(N, H, W, C\)"),
        (TensorProto.FLOAT, "yuv", "one of normalised, pixels, got 'yuv'; update mimiq-deploy"),
    ],
    ids=["silent", "contradiction", "unknown"],
)
def test_a_file_whose_word_and_input_differ_is_refused(
    engine: str, tmp_path: Path, dtype: int, form: str | None, expected: str
) -> None:
    path = save_model(tmp_path / "model.onnx", dtype, form)
    with pytest.raises(OnnxModelError, match=expected):
        open_session(engine, path)


def test_other_metadata_says_nothing_about_the_input() -> None:
    assert input_form({"mimiq_deploy.bits": "w4a4"}) is InputForm.NORMALISED


def test_the_benchmark_gives_each_session_the_form_it_takes(tmp_path: Path) -> None:
    paths = {
        "float": save_model(tmp_path / "float.onnx", TensorProto.FLOAT, None),
        "pixels": save_model(tmp_path / "pixels.onnx", TensorProto.UINT8, "pixels"),
    }
    with (
        open_session("ort-cpu", paths["float"]) as one,
        open_session("ort-cpu", paths["pixels"]) as two,
    ):
        report = benchmark_sessions(
            {1: [contextlib.nullcontext({"float": one, "pixels": two})]},
            batch_sizes=[2],
            input_shape=(3, 4, 6),
            rounds=3,
            warmup=1,
        )
    assert [report.sessions[name].takes for name in paths] == ["normalised", "pixels"]
    assert [row.rounds for row in report.rows] == [3, 3]
