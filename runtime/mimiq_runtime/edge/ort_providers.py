"""With which execution providers, and which options of them, ONNX Runtime runs each engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CPU", "CUDA", "TENSORRT", "providers_of"]

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))

# TF32 keeps 10 bits of a float's 23: a model in "single precision" would not be one.
_CUDA_OPTIONS = {"device_id": 0, "use_tf32": 0}


def providers_of(engine: str, model: Path) -> list[str | tuple[str, dict[str, Any]]]:
    """Providers in ONNX Runtime's form; the first one is what was asked for.

    Those after it may take what it cannot run, such as the shapes of a graph.

    Args:
        engine: ``ort-cpu``, ``ort-cuda`` or ``ort-trt``.
        model: The ONNX file; TensorRT's engines and timings are kept beside it.
    """
    if engine == "ort-cpu":
        return [CPU]
    if engine == "ort-cuda":
        return [(CUDA, _CUDA_OPTIONS), CPU]
    cache = str(model.parent / "ort-trt-cache")
    options = {
        "device_id": 0,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": cache,
    }
    return [(TENSORRT, options), (CUDA, _CUDA_OPTIONS), CPU]
