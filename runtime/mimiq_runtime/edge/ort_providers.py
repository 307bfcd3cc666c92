"""With which execution providers, and which options of them, ONNX Runtime runs each engine.

And where their libraries are: CUDA and cuDNN come as wheels of their own, which the loader does not
look into.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CPU", "CUDA", "TENSORRT", "load_cuda", "providers_of"]

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))

# TF32 keeps 10 bits of a float's 23: a model in "single precision" would not be one.
_CUDA_OPTIONS = {"device_id": 0, "use_tf32": 0}


def providers_of(engine: str, cache: Path | None = None) -> list[str | tuple[str, dict[str, Any]]]:
    """Providers in ONNX Runtime's form; the first one is what was asked for.

    Those after it may take what it cannot run, such as the shapes of a graph.

    Args:
        engine: ``ort-cpu``, ``ort-cuda`` or ``ort-trt``.
        cache: For ``ort-trt``, the folder of :func:`mimiq_runtime.edge.engine_cache.engine_cache`;
            with None, engines are built anew each time.
    """
    if engine == "ort-cpu":
        return [CPU]
    if engine == "ort-cuda":
        return [(CUDA, _CUDA_OPTIONS), CPU]
    options: dict[str, Any] = {"device_id": 0}
    if cache is not None:
        options |= {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": str(cache),
        }
    return [(TENSORRT, options), (CUDA, _CUDA_OPTIONS), CPU]


def load_cuda(ort: Any) -> None:
    """Load CUDA and cuDNN from their wheels, where ONNX Runtime can (since 1.21).

    What is missing is told when a model is opened; ``preload_dlls`` prints it, into the command's
    result.

    Args:
        ort: The module ``onnxruntime``.
    """
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
