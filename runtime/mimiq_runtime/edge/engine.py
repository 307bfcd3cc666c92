"""From a bundle to a function that classifies, in the engine that the bundle was made for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray

    from mimiq_runtime.edge.bundle import Bundle

    Classifier = Callable[[NDArray[Any]], NDArray[np.float32]]

__all__ = ["LOADERS", "load_model"]

LOADERS = {
    "ort-cpu": "ort_model",
    "ort-cuda": "ort_model",
    "ort-trt": "ort_model",
    "openvino": "openvino_model",
    "trt": "trt_model",
}
"""The module beside this one that loads a model for each engine; a bundle has only its own."""


def load_model(bundle: Bundle) -> AbstractContextManager[Classifier]:
    """Load the model, and release it at the end of the ``with`` block.

    Yields:
        A function from one picture in the form that the model takes (``bundle.takes``), as a
        batch of 1, to logits (1, classes), float32.

    Raises:
        EngineError: The engine's library is not installed, or cannot run the model here.
    """
    module = importlib.import_module(f"mimiq_runtime.edge.{LOADERS[bundle.engine]}")
    return cast("AbstractContextManager[Classifier]", module.load_model(bundle))
