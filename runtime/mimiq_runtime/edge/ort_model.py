"""A bundle's model in ONNX Runtime, on the provider that it was made for and on no other."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_runtime.edge.engine_cache import engine_cache
from mimiq_runtime.edge.library_errors import import_library, no_traceback
from mimiq_runtime.edge.ort_providers import load_cuda, providers_of
from mimiq_runtime.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from mimiq_runtime.edge.bundle import Bundle

__all__ = ["load_model"]

_ERRORS_ONLY = 3


@contextlib.contextmanager
def load_model(bundle: Bundle) -> Iterator[Callable[[NDArray[Any]], NDArray[np.float32]]]:
    """Load the model; see :func:`mimiq_runtime.edge.engine.load_model`."""
    ort = import_library("onnxruntime")
    # TensorRT's wheel keeps its libraries where the loader finds them only after an import.
    on_tensorrt = bundle.engine == "ort-trt"
    if on_tensorrt:
        import_library("tensorrt")
    if bundle.engine != "ort-cpu":
        load_cuda(ort)
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if on_tensorrt:
        # TensorRT looks for Q/DQ pairs where the export put them.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    cache = engine_cache(bundle.model, ort.__version__) if on_tensorrt else None
    providers = providers_of(bundle.engine, cache)
    with no_traceback(f"ONNX Runtime {ort.__version__}", "open", bundle.model):
        session = ort.InferenceSession(
            str(bundle.model), options, providers=providers, enable_fallback=False
        )
    session.disable_fallback()
    _check_provider(session.get_providers()[0], providers[0])
    name = session.get_inputs()[0].name

    def classify(images: NDArray[Any]) -> NDArray[np.float32]:
        with no_traceback(f"ONNX Runtime {ort.__version__}", "run", bundle.model):
            return np.asarray(session.run(None, {name: images})[0], dtype=np.float32)

    yield classify


def _check_provider(taken: str, first: str | tuple[str, dict[str, Any]]) -> None:
    wanted = first if isinstance(first, str) else first[0]
    if taken != wanted:
        raise EngineError(
            f"Expected ONNX Runtime to run the model on {wanted}, and it chose {taken}; check the "
            "driver and the libraries that README.md names."
        )
