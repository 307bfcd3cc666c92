"""ONNX Runtime on an NVIDIA GPU: its CUDA provider, and its TensorRT provider.

Both come with the wheel ``onnxruntime-gpu``. The wheel is compiled against one major version of
TensorRT and finds that one or none, whatever else is installed.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimiq_runtime.classifier_checks import check_onnx_file
from mimiq_runtime.edge.engine_cache import engine_cache
from mimiq_runtime.edge.ort_providers import CUDA, TENSORRT, load_cuda, providers_of
from mimiq_runtime.errors import EngineError, MissingDependencyError
from mimiq_runtime.extras import installed_version
from mimiq_runtime.ort_session import OrtSession, import_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimiq_runtime.session import ReadsTensors, Session

__all__ = ["linked_tensorrt", "open_cuda", "open_tensorrt", "tensorrt_mismatch"]

_LIBRARY = "libonnxruntime_providers_tensorrt.so"
_NVINFER = re.compile(rb"libnvinfer\.so\.([0-9]+)")


def open_cuda(model: Path, threads: int | None, tensors: Sequence[str] = ()) -> ReadsTensors:
    """Open an ONNX file on the CUDA provider, with names of outputs behind the logits.

    Shapes and other small integers may be computed on the CPU, as ONNX Runtime itself decides; a
    product may not.

    Raises:
        MissingDependencyError: ``onnxruntime-gpu`` is not installed.
        OnnxModelError: The file is missing, broken, or no image classifier.
        EngineError: The provider, its libraries or the driver are missing or do not fit.
    """
    load_cuda(_import_with(CUDA))
    return OrtSession(
        model,
        engine="ort-cuda",
        providers=providers_of("ort-cuda"),
        threads=threads,
        tensors=tensors,
        precision="as in the file, TF32 off",
        remedy=(
            "install NVIDIA's driver, and CUDA and cuDNN with "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        ),
    )


def open_tensorrt(model: Path, threads: int | None) -> Session:
    """Open an ONNX file on the TensorRT provider, with the CUDA provider behind it.

    The engine is built when the first batch of a size comes, and is kept in a folder of the user
    (:func:`mimiq_runtime.edge.engine_cache.engine_cache`). ONNX Runtime does not rewrite the graph
    before: TensorRT looks for Q/DQ pairs where the export put them.

    Raises:
        MissingDependencyError: ``onnxruntime-gpu`` is not installed.
        OnnxModelError: The file is missing, broken, or no image classifier.
        EngineError: The provider, TensorRT or the driver are missing or do not fit, or others can
            write into the folder of the engines.
    """
    ort = _import_with(TENSORRT)
    mismatch = tensorrt_mismatch()
    if mismatch is not None:
        raise EngineError(mismatch)
    check_onnx_file(model)
    load_cuda(ort)
    _load_tensorrt()
    return OrtSession(
        model,
        engine="ort-trt",
        providers=providers_of("ort-trt", engine_cache(model, ort.__version__)),
        threads=threads,
        optimize=False,
        remedy="install NVIDIA's driver, and see mimiq-deploy doctor",
    )


def tensorrt_mismatch() -> str | None:
    """Why the TensorRT provider cannot load, in one sentence with the remedy; None if it may.

    Looks at which TensorRT the provider's library asks for, and at what is installed.
    """
    linked, installed = linked_tensorrt(), installed_version("tensorrt")
    if linked is None:
        return None
    want = f"pip install 'tensorrt>={linked},<{linked + 1}'"
    found = _major(installed)
    if found is not None and found != linked:
        return (
            f"The TensorRT provider of this ONNX Runtime is linked against TensorRT {linked}, and "
            f"TensorRT {installed} is installed; use --engine trt, or {want}."
        )
    if installed is None and not _can_load(f"libnvinfer.so.{linked}"):
        return (
            f"The TensorRT provider of this ONNX Runtime needs TensorRT {linked} "
            f"(libnvinfer.so.{linked}), which is not installed; {want}."
        )
    return None


def linked_tensorrt() -> int | None:
    """Major version of TensorRT that ONNX Runtime's provider is linked against.

    None where there is no such provider. ONNX Runtime is not imported.
    """
    spec = util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    library = Path(spec.origin).parent / "capi" / _LIBRARY
    try:
        match = _NVINFER.search(library.read_bytes())
    except OSError:
        return None
    return int(match[1]) if match else None


def _import_with(provider: str) -> Any:
    """ONNX Runtime, if it has a provider."""
    if util.find_spec("onnxruntime") is None:
        raise MissingDependencyError("onnxruntime-gpu", "ort-gpu")
    ort = import_onnxruntime()
    available = ort.get_available_providers()
    if provider not in available:
        raise EngineError(
            f"Expected ONNX Runtime with {provider}, got one with {', '.join(available)}; "
            # Each overwrites the other's files: what is left when one of two goes is broken.
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install "
            "'mimiq-deploy[ort-gpu]'."
        )
    return ort


def _load_tensorrt() -> None:
    """TensorRT's wheel keeps its libraries where the loader does not look; importing it helps."""
    if util.find_spec("tensorrt") is None:
        return
    try:
        importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise EngineError(
            f"TensorRT is installed and cannot be loaded ({error}); "
            "pip install --force-reinstall tensorrt, or see mimiq-deploy doctor."
        ) from error


def _major(version: str | None) -> int | None:
    match = re.match(r"[0-9]+", version or "")
    return int(match[0]) if match else None


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
