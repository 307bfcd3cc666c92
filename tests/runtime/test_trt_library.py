"""TensorRT and CUDA where they are missing, broken, of another version, or without a driver."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from mimiq_runtime.cuda_device import CudaDevice
from mimiq_runtime.cuda_runtime import CudaRuntime, cuda_version_name
from mimiq_runtime.errors import EngineError, MissingDependencyError
from mimiq_runtime.session import open_session
from mimiq_runtime.trt_library import import_tensorrt

if TYPE_CHECKING:
    from pathlib import Path


def install(name: str, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of this name whose import runs ``source``."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"tensorrt is needed.*mimiq-deploy\[trt\]"):
        import_tensorrt()


def test_native_libraries_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "raise ImportError('libnvinfer.so.11: cannot open shared object file')"
    install("tensorrt", source, tmp_path, monkeypatch)
    with pytest.raises(EngineError, match=r"\(libnvinfer.*LD_LIBRARY_PATH"):
        import_tensorrt()


@pytest.mark.parametrize("version", ["8.6.1", "10.2.0", "12.0.0"])
def test_versions_that_are_not_known(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("tensorrt", f"__version__ = {version!r}", tmp_path, monkeypatch)
    with pytest.raises(EngineError, match=rf"got {version}; pip install 'tensorrt>=10\.3,<12'"):
        import_tensorrt()


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.4.0.106"])
def test_versions_that_are_known(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("tensorrt", f"__version__ = {version!r}", tmp_path, monkeypatch)
    assert import_tensorrt().__version__ == version


def test_no_plan(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"not one; mimiq-deploy build makes it"):
        open_session("trt", tmp_path / "engine.plan")


def test_cuda_python_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(MissingDependencyError, match=r"cuda-python is needed.*mimiq-deploy\[trt\]"):
        CudaRuntime()


class NoDevice(ModuleType):
    """The CUDA runtime on a machine without a GPU that it could use."""

    class cudaError_t:  # noqa: N801
        cudaSuccess = 0  # noqa: N815

    def __init__(self, driver: int) -> None:
        super().__init__("cuda.bindings.runtime")
        self.driver = driver

    def cudaGetDeviceCount(self) -> tuple[int, Any]:  # noqa: N802
        return 35, None

    def cudaDriverGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return 0, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return 0, 13050

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"the driver is insufficient"


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (0, r"No NVIDIA GPU can be used here \(35: the driver is insufficient\).*nvidia-smi"),
        (12080, r"supports CUDA 12\.8, and cuda-python is made for 13\.5.*'cuda-python<13'"),
    ],
    ids=["no driver", "old driver"],
)
def test_no_device(driver: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = ModuleType("cuda.bindings")
    vars(bindings)["runtime"] = NoDevice(driver)
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    with pytest.raises(EngineError, match=words):
        CudaRuntime()


def test_no_driver_as_cuda_python_12_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 12.8, the oldest that is taken, raises; seen on a machine without a driver."""

    def fail() -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    bindings, runtime = ModuleType("cuda.bindings"), NoDevice(0)
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", fail)
    vars(bindings)["runtime"] = runtime
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    with pytest.raises(EngineError, match=r"here \(Failed to dlopen libcuda.so.1\); install NV"):
        CudaRuntime()


def test_names_of_devices_and_versions() -> None:
    device = CudaDevice(
        name="NVIDIA H200 (MIG 1g)",
        compute_capability="9.0",
        cuda_driver="13.0",
        cuda_runtime="12.8",
    )
    assert device.slug == "nvidia-h200-mig-1g-sm90"
    assert [cuda_version_name(number) for number in (12080, 13000, 11040)] == [
        "12.8",
        "13.0",
        "11.4",
    ]
