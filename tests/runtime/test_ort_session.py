"""What only ONNX Runtime does, above all with providers. See also ``test_cpu_sessions.py``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import onnxruntime
import pytest
from _helpers.tiny_classifiers import images, save_model

from mimiq_runtime.benchmark import benchmark_sessions
from mimiq_runtime.errors import EngineError, InvalidInputError
from mimiq_runtime.machine import usable_cores
from mimiq_runtime.ort_session import OrtSession
from mimiq_runtime.session import known_engines, open_session

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model.onnx")


def test_info_says_what_runs(model: Path) -> None:
    with open_session("ort-cpu", model, threads=1) as session:
        info = session.info
    assert (info.device, info.provider) == ("cpu", "CPUExecutionProvider")


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


def test_a_failing_run_is_an_engine_error_without_noise(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save_model(tmp_path / "model.onnx", shape=("N", "C", 4, 4))
    with open_session("ort-cpu", path) as session:
        with pytest.raises(EngineError, match="ONNX Runtime failed to run"):
            session.run(images(1, 2, 4, 4))
        assert session.run(images(1)).shape == (1, 5)
    assert capfd.readouterr() == ("", "")


def test_benchmark_of_real_sessions(model: Path) -> None:
    with open_session("ort-cpu", model) as one, open_session("ort-cpu", model) as two:
        report = benchmark_sessions(
            {1: [contextlib.nullcontext({"one": one, "two": two})]},
            batch_sizes=[1, 2],
            input_shape=(3, 4, 4),
            rounds=3,
            warmup=1,
        )
    assert [row.rounds for row in report.rows] == [3] * 4
    assert min(row.p50_ms for row in report.rows) > 0
    assert report.sessions["two"].provider == "CPUExecutionProvider"
