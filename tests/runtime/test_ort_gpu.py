"""ONNX Runtime's GPU providers on a machine that has none: what is refused, and in which words."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from _helpers.runs import write_classifier
from _helpers.tiny_classifiers import images, save_model

from mimiq_runtime import ort_gpu
from mimiq_runtime.edge.ort_providers import load_cuda
from mimiq_runtime.errors import EngineError, MissingDependencyError
from mimiq_runtime.ort_gpu import linked_tensorrt, tensorrt_mismatch
from mimiq_runtime.ort_session import OrtSession
from mimiq_runtime.session import open_session

if TYPE_CHECKING:
    from pathlib import Path

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def gpu_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of onnxruntime-gpu, as far as its files are looked at."""
    package = tmp_path / "site" / "onnxruntime"
    (package / "capi").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    provider = package / "capi" / "libonnxruntime_providers_tensorrt.so"
    provider.write_bytes(b"\x7fELF\0\0libcudart.so.13\0libnvinfer.so.10\0libnvonnxparser.so.10\0")
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return provider


def test_the_linked_version_is_read_from_the_provider(gpu_wheel: Path) -> None:
    assert linked_tensorrt() == 10
    gpu_wheel.write_bytes(b"libnvinfer.so.11\0")
    assert linked_tensorrt() == 11
    gpu_wheel.unlink()
    assert linked_tensorrt() is None


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ("11.4.0.106", r"linked against TensorRT 10, and TensorRT 11\.4\.0\.106 is installed"),
        (None, r"needs TensorRT 10 \(libnvinfer\.so\.10\), which is not installed"),
    ],
)
def test_a_mismatch_is_one_sentence_with_the_remedy(
    installed: str | None, words: str, gpu_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_gpu, "installed_version", lambda name: installed)
    sentence = tensorrt_mismatch()
    assert sentence is not None
    with pytest.raises(EngineError, match=words):
        raise EngineError(sentence)
    assert "pip install 'tensorrt>=10,<11'" in sentence


@pytest.mark.parametrize("installed", ["10.13.2", "unknown"])
def test_a_version_that_fits_or_is_not_known_is_no_mismatch(
    installed: str, gpu_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_gpu, "installed_version", lambda name: installed)
    assert tensorrt_mismatch() is None


def test_a_mismatch_stops_the_session_before_anything_is_loaded(
    gpu_wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (gpu_wheel.parents[1] / "__init__.py").write_text(
        "def get_available_providers():\n    return ['TensorrtExecutionProvider']\n"
    )
    monkeypatch.setattr(ort_gpu, "installed_version", lambda name: "11.4.0.106")
    with pytest.raises(EngineError, match="use --engine trt"):
        open_session("ort-trt", tmp_path / "model.onnx")


@pytest.mark.parametrize("engine", ["ort-cuda", "ort-trt"])
def test_the_wheel_for_cpus_is_refused(engine: str, tmp_path: Path) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this build of onnxruntime has CUDA")
    with pytest.raises(EngineError, match=r"pip uninstall -y onnxruntime onnxruntime-gpu, then"):
        open_session(engine, save_model(tmp_path / "model.onnx"))


def test_no_wheel_at_all_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ort_gpu.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"onnxruntime-gpu.*mimiq-deploy\[ort-gpu\]"):
        open_session("ort-cuda", save_model(tmp_path / "model.onnx"))


def test_cuda_is_loaded_from_its_wheels_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``preload_dlls`` came with 1.21, and prints what it does not find."""
    called = []

    def preload() -> None:
        called.append(True)
        print("Failed to load libcudart.so.13")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Claimed)
    with pytest.raises(EngineError, match="to other providers"):
        open_session("ort-cuda", save_model(tmp_path / "model.onnx"))
    assert called
    assert capsys.readouterr().out == ""
    monkeypatch.delattr(onnxruntime, "preload_dlls")
    load_cuda(onnxruntime)


class Claimed:
    """A session on the CPU that says that it runs on CUDA."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        del keywords["providers"]
        self.real = REAL(*arguments, providers=[CPU], **keywords)

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


REAL = onnxruntime.InferenceSession


def test_products_on_another_provider_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first provider's name is right, and yet ONNX Runtime runs the products on the CPU."""
    path = tmp_path / "model.onnx"
    write_classifier(path)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Claimed)
    with pytest.raises(EngineError, match=r"left 2 to other providers, the first of them MatMul"):
        OrtSession(path, engine="ort-cuda", providers=[CUDA, CPU])


def test_products_are_counted_by_provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_classifier(path)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Claimed)
    nodes = [SimpleNamespace(op_type=name, name=name) for name in ("MatMul", "Gemm", "Shape")]
    parts = [
        SimpleNamespace(ep_name=CUDA, get_nodes=lambda: nodes[:2]),
        SimpleNamespace(ep_name=CPU, get_nodes=lambda: nodes[2:]),
    ]
    monkeypatch.setattr(
        Claimed, "get_provider_graph_assignment_info", lambda self: parts, raising=False
    )
    session = OrtSession(path, engine="ort-cuda", providers=[CUDA, CPU])
    assert session.info.products == {CUDA: 2}


def test_a_provider_that_cannot_load_is_an_engine_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The TensorRT provider raises Python's own RuntimeError where its libraries are missing."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Please install TensorRT libraries.\nMore")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(EngineError, match=r"Please install TensorRT libraries; do this\.$"):
        OrtSession(
            save_model(tmp_path / "model.onnx"),
            engine="ort-trt",
            providers=[CUDA, CPU],
            remedy="do this",
        )
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["ort-cuda", "ort-trt"])
def test_on_a_gpu_the_answers_are_those_of_the_cpu(engine: str, tmp_path: Path) -> None:
    provider = {"ort-cuda": CUDA, "ort-trt": "TensorrtExecutionProvider"}[engine]
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"this build of onnxruntime has no {provider}")
    if engine == "ort-trt" and tensorrt_mismatch() is not None:
        pytest.skip(str(tensorrt_mismatch()))
    path = save_model(tmp_path / "model.onnx")
    with open_session("ort-cpu", path) as reference, open_session(engine, path) as tested:
        assert tested.info.provider == provider
        assert tested.info.products in (None, {provider: 1})
        for batch in (1, 5):
            # TF32 would be right to 3 digits only.
            np.testing.assert_allclose(
                tested.run(images(batch)), reference.run(images(batch)), rtol=1e-4, atol=1e-5
            )
