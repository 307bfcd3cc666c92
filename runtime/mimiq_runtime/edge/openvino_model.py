"""A bundle's model in OpenVINO on the CPU."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_runtime.edge.library_errors import import_library, no_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from mimiq_runtime.edge.bundle import Bundle

__all__ = ["DEVICE", "SETTINGS", "load_model"]

DEVICE = "CPU"

SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
}
"""Nothing is rounded beyond what the file says: no bf16 and no fp16, no activation quantized on
the way; one call at a time."""


@contextlib.contextmanager
def load_model(bundle: Bundle) -> Iterator[Callable[[NDArray[Any]], NDArray[np.float32]]]:
    """Load the model; see :func:`mimiq_runtime.edge.engine.load_model`."""
    openvino = import_library("openvino")
    with no_traceback(f"OpenVINO {openvino.__version__}", "open", bundle.model):
        compiled = openvino.Core().compile_model(str(bundle.model), DEVICE, SETTINGS)

    def classify(images: NDArray[Any]) -> NDArray[np.float32]:
        with no_traceback(f"OpenVINO {openvino.__version__}", "run", bundle.model):
            # A copy: the next call writes into the same memory.
            return np.array(compiled([images])[0], dtype=np.float32)

    yield classify
