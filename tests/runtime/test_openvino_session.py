"""Tiny ONNX models in the real OpenVINO; the reference is numpy, and ONNX Runtime."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
import pytest
from _helpers.runs import write_classifier
from _helpers.tiny_classifiers import WEIGHT, images, save_model
from onnx import TensorProto

from mimiq_runtime.errors import (
    EngineError,
    InvalidInputError,
    MissingDependencyError,
    OnnxModelError,
)
from mimiq_runtime.machine import usable_cores
from mimiq_runtime.session import needs_gpu, open_session, target_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model.onnx")


@pytest.mark.parametrize("n", [1, 7])
def test_logits_equal_numpy(model: Path, n: int) -> None:
    with open_session("openvino", model) as session:
        logits = session.run(images(n))
    assert (logits.shape, logits.dtype) == ((n, 5), np.float32)
    expected = images(n).mean(axis=(2, 3)) @ WEIGHT
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_images_need_not_be_contiguous_and_results_stay(model: Path) -> None:
    turned = images(2).transpose(0, 1, 3, 2)[:, ::-1]
    with open_session("openvino", model) as session:
        first = session.run(turned)
        session.run(images(2) * 100)
    expected = turned.mean(axis=(2, 3)) @ WEIGHT
    np.testing.assert_allclose(first, expected, rtol=1e-5, atol=1e-6)


def test_info_says_what_runs(model: Path) -> None:
    with open_session("openvino", model, threads=1) as session:
        info = session.info
    device = openvino.Core().get_property("CPU", "FULL_DEVICE_NAME").strip()
    assert (info.engine, info.device) == ("openvino", device)
    assert info.provider == "openvino_intel_cpu_plugin"
    assert info.libraries == {"openvino": openvino.__version__}
    assert (info.model, info.threads, info.precision) == (str(model), 1, "f32")
    assert info.model_sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert info.input_shape == (None, 3, 4, 4)
    assert info.products == {"f32": 1}


def test_threads_default_to_the_cores(model: Path) -> None:
    with open_session("openvino", model) as session:
        assert session.info.threads == usable_cores()


def test_a_quantized_product_runs_in_int8_and_gives_the_same_answer(tmp_path: Path) -> None:
    """One product on dequantized operands, one on floating point; ONNX Runtime is the reference."""
    path = tmp_path / "model.onnx"
    write_classifier(path)
    batch = np.random.default_rng(0).uniform(-1, 1, (4, 3, 8, 8)).astype(np.float32)
    with open_session("openvino", path) as tested, open_session("ort-cpu", path) as reference:
        np.testing.assert_allclose(tested.run(batch), reference.run(batch), rtol=1e-5, atol=1e-6)
        assert tested.info.products == {"f32": 1, "i8": 1}


def test_missing_library_names_the_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"openvino is needed.*mimiq-deploy\[openvino"):
        open_session("openvino", model)


def test_a_library_that_cannot_be_loaded_is_one_sentence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "openvino"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libtbb.so.12: no such file')")
    monkeypatch.delitem(sys.modules, "openvino")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(EngineError, match=r"cannot be loaded \(libtbb.*--force-reinstall"):
        open_session("openvino", model)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.onnx", tmp_path):
        with pytest.raises(OnnxModelError, match="Expected an ONNX file"):
            open_session("openvino", path)


@pytest.mark.parametrize("fault", ["empty", "noise", "truncated", "unknown operator"])
def test_broken_models_are_one_sentence(model: Path, fault: str) -> None:
    content = model.read_bytes()
    if fault == "unknown operator":
        save_model(model, operator="NoSuchOperator")
    else:
        damaged = {"empty": b"", "noise": b"\x99hello" * 50, "truncated": content[:-40]}
        model.write_bytes(damaged[fault])
    with pytest.raises(OnnxModelError, match="is not a model that OpenVINO can read") as caught:
        open_session("openvino", model)
    assert "\n" not in str(caught.value)
    assert "Exception from" not in str(caught.value)
    assert str(model) in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"shape": ("N", 3, 16)}, {"dtype": TensorProto.UINT8}, {"inputs": 2}, {"outputs": 2}],
    ids=["rank", "type", "inputs", "outputs"],
)
def test_models_that_are_no_image_classifier(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = save_model(tmp_path / "model.onnx", **changes)
    with pytest.raises(OnnxModelError, match=r"Expected one input f32.*image0"):
        open_session("openvino", path)


def test_images_that_do_not_fit(model: Path) -> None:
    with open_session("openvino", model) as session:
        for given in (images(2, 3, 5, 4), images(2, 1, 4, 4), images(2).astype(np.float64)):
            with pytest.raises(InvalidInputError, match=r"shape \(any, 3, 4, 4\)"):
                session.run(given)


def test_a_fixed_batch_size_is_kept(tmp_path: Path) -> None:
    path = save_model(tmp_path / "model.onnx", shape=(2, 3, 4, 4))
    with open_session("openvino", path) as session:
        assert session.info.input_shape == (2, 3, 4, 4)
        assert session.run(images(2)).shape == (2, 5)
        with pytest.raises(InvalidInputError, match=r"shape \(2, 3, 4, 4\)"):
            session.run(images(3))


def test_logits_of_another_shape_are_an_engine_error(tmp_path: Path) -> None:
    path = save_model(tmp_path / "model.onnx", axes=(0, 2, 3))
    with (
        open_session("openvino", path) as session,
        pytest.raises(EngineError, match=r"logits of shape \(2, classes\).*got \(5,\)"),
    ):
        session.run(images(2))


def test_a_closed_session_says_so(model: Path) -> None:
    with open_session("openvino", model) as session:
        pass
    with pytest.raises(EngineError, match="closed"):
        session.run(images(1))


def test_every_engine_has_a_target() -> None:
    assert {engine: target_of(engine) for engine in ("openvino", "ort-trt", "trt", "ort-cuda")} == {
        "openvino": "openvino",
        "ort-trt": "trt",
        "trt": "trt",
        "ort-cuda": "ort-cuda",
    }
    assert needs_gpu("ort-trt")
    assert not needs_gpu("openvino")
    with pytest.raises(InvalidInputError, match="one of the engines"):
        target_of("abacus")
