"""Tiny ONNX models made by onnx.helper; the reference is numpy."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from _helpers.tiny_classifiers import WEIGHT, images, save_model
from onnx import TensorProto

from mimiq_runtime.benchmark import benchmark_sessions
from mimiq_runtime.errors import (
    EngineError,
    InvalidInputError,
    MissingDependencyError,
    OnnxModelError,
)
from mimiq_runtime.machine import usable_cores
from mimiq_runtime.ort_session import OrtSession
from mimiq_runtime.session import known_engines, open_session

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model.onnx")


@pytest.mark.parametrize("n", [1, 7])
def test_logits_equal_numpy(model: Path, n: int) -> None:
    with open_session("ort-cpu", model) as session:
        logits = session.run(images(n))
    assert (logits.shape, logits.dtype) == ((n, 5), np.float32)
    expected = images(n).mean(axis=(2, 3)) @ WEIGHT
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_images_need_not_be_contiguous(model: Path) -> None:
    turned = images(2).transpose(0, 1, 3, 2)[:, ::-1]
    with open_session("ort-cpu", model) as session:
        np.testing.assert_allclose(
            session.run(turned), turned.mean(axis=(2, 3)) @ WEIGHT, rtol=1e-5, atol=1e-6
        )


def test_info_says_what_runs(model: Path) -> None:
    with open_session("ort-cpu", model, threads=1) as session:
        info = session.info
    assert (info.engine, info.device, info.provider) == ("ort-cpu", "cpu", "CPUExecutionProvider")
    assert info.libraries == {"onnxruntime": onnxruntime.__version__}
    assert (info.model, info.threads) == (str(model), 1)
    assert info.model_sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert info.input_shape == (None, 3, 4, 4)


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (None, usable_cores())])
def test_threads_reach_onnxruntime(model: Path, threads: int | None, expected: int) -> None:
    with OrtSession(
        model, engine="x", providers=["CPUExecutionProvider"], threads=threads
    ) as session:
        options = session._session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (expected, 1)
        assert session.info.threads == expected
        assert not session._session._enable_fallback


def test_engine_names(model: Path) -> None:
    assert known_engines() == ("ort-cpu", "ort-cuda", "ort-trt", "openvino", "trt")
    with pytest.raises(InvalidInputError, match=r"one of the engines ort-cpu, .*'tensorflow'"):
        open_session("tensorflow", model)
    with pytest.raises(InvalidInputError, match="threads must be at least 1; got 0"):
        open_session("ort-cpu", model, threads=0)


def test_a_provider_that_is_not_there_is_an_error_and_no_fallback(model: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build of onnxruntime has CUDA")
    with pytest.raises(EngineError, match=r"with CUDAExecutionProvider, got one with .*CPU"):
        OrtSession(
            model, engine="ort-cuda", providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
        )


def test_a_provider_that_fails_to_start_is_an_error_and_no_fallback(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built with CUDA but without its libraries, ONNX Runtime warns and takes the CPU."""
    build = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: build)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, **_: real(path, options, providers=[build[1]]),
    )
    with pytest.raises(EngineError, match="fell back to CPUExecutionProvider"):
        OrtSession(model, engine="ort-cuda", providers=[("CUDAExecutionProvider", {}), build[1]])


def test_no_provider_is_refused(model: Path) -> None:
    with pytest.raises(InvalidInputError, match="at least one execution provider"):
        OrtSession(model, engine="x", providers=[])


def test_missing_library_names_the_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"onnxruntime is needed.*mimiq-deploy\[ort\]"):
        open_session("ort-cpu", model)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.onnx", tmp_path):
        with pytest.raises(OnnxModelError, match="Expected an ONNX file"):
            open_session("ort-cpu", path)


@pytest.mark.parametrize("fault", ["empty", "noise", "truncated", "unknown operator"])
def test_broken_models_are_one_sentence_and_no_noise(
    model: Path, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    content = model.read_bytes()
    if fault == "unknown operator":
        save_model(model, operator="NoSuchOperator")
    else:
        damaged = {"empty": b"", "noise": b"\x99hello" * 50, "truncated": content[:-40]}
        model.write_bytes(damaged[fault])
    with pytest.raises(OnnxModelError, match="is not a model that ONNX Runtime") as caught:
        open_session("ort-cpu", model)
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": ("N", 3, 16)},
        {"dtype": TensorProto.UINT8},
        {"inputs": 2},
        {"outputs": 2},
    ],
    ids=["rank", "type", "inputs", "outputs"],
)
def test_models_that_are_no_image_classifier(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = save_model(tmp_path / "model.onnx", **changes)
    with pytest.raises(OnnxModelError, match=r"Expected one input tensor\(float\).*image0"):
        open_session("ort-cpu", path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (images(2, 3, 5, 4), r"shape \(any, 3, 4, 4\).*got float32 of shape \(2, 3, 5, 4\)"),
        (images(2, 1, 4, 4), r"got float32 of shape \(2, 1, 4, 4\)"),
        (images(2).astype(np.float64), "got float64"),
        (images(2)[0], r"got float32 of shape \(3, 4, 4\)"),
        (images(2)[:0], r"at least one, got float32 of shape \(0, 3, 4, 4\)"),
    ],
    ids=["size", "channels", "type", "rank", "none"],
)
def test_images_that_do_not_fit(model: Path, given: np.ndarray[Any, Any], expected: str) -> None:
    with (
        open_session("ort-cpu", model) as session,
        pytest.raises(InvalidInputError, match=expected),
    ):
        session.run(given)


def test_a_fixed_batch_size_is_kept(tmp_path: Path) -> None:
    path = save_model(tmp_path / "model.onnx", shape=(2, 3, 4, 4))
    with open_session("ort-cpu", path) as session:
        assert session.run(images(2)).shape == (2, 5)
        with pytest.raises(InvalidInputError, match=r"shape \(2, 3, 4, 4\)"):
            session.run(images(3))


def test_a_failing_run_is_an_engine_error_without_noise(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save_model(tmp_path / "model.onnx", shape=("N", "C", 4, 4))
    with open_session("ort-cpu", path) as session:
        with pytest.raises(EngineError, match="ONNX Runtime failed to run"):
            session.run(images(1, 2, 4, 4))
        assert session.run(images(1)).shape == (1, 5)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("shape", "axes", "got"),
    [((3, 4, 4), (0, 2, 3), r"\(5,\)"), ((4, 4, 3), (0, 1), r"\(4, 5\)")],
    ids=["rank", "rows"],
)
def test_logits_of_another_shape_are_an_engine_error(
    tmp_path: Path, shape: tuple[int, ...], axes: tuple[int, ...], got: str
) -> None:
    path = save_model(tmp_path / "model.onnx", shape=("N", *shape), axes=axes)
    with (
        open_session("ort-cpu", path) as session,
        pytest.raises(EngineError, match=rf"logits of shape \(2, classes\).*got {got}"),
    ):
        session.run(images(2, *shape))


def test_a_closed_session_says_so(model: Path) -> None:
    session = open_session("ort-cpu", model)
    with session:
        pass
    with pytest.raises(EngineError, match="closed"):
        session.run(images(1))
    assert session.info.engine == "ort-cpu"


def test_benchmark_of_real_sessions(model: Path) -> None:
    with open_session("ort-cpu", model) as one, open_session("ort-cpu", model) as two:
        report = benchmark_sessions(
            {"one": one, "two": two}, batch_sizes=[1, 2], input_shape=(3, 4, 4), rounds=3, warmup=1
        )
    assert [row.rounds for row in report.rows] == [3] * 4
    assert min(row.p50_ms for row in report.rows) > 0
    assert report.sessions["two"].provider == "CPUExecutionProvider"
