"""TensorRT's Python library: found, loaded, and of a version that is known.

The names of its versions 10 and 11 that are used here are the ones that both have; a test
resolves them against NVIDIA's own bindings (tests/runtime/test_trt_conformance.py).
"""

from __future__ import annotations

from typing import Any

from mimiq_runtime.classifier_checks import first_line
from mimiq_runtime.errors import EngineError, MissingDependencyError
from mimiq_runtime.extras import satisfies

__all__ = ["KNOWN_VERSIONS", "import_tensorrt", "unknown_version"]

KNOWN_VERSIONS = ">=10.3,<12"
"""Versions of TensorRT whose interface is known: the code is checked against 10.3 to 11.4."""


def import_tensorrt() -> Any:
    """Import TensorRT.

    Raises:
        MissingDependencyError: It is not installed.
        EngineError: It cannot be loaded, or is of a version that is not known.
    """
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        raise MissingDependencyError("tensorrt", "trt") from error
    except (ImportError, OSError) as error:
        raise EngineError(
            f"TensorRT is installed and cannot be loaded ({first_line(error)}); "
            "pip install --force-reinstall 'mimiq-deploy[trt]', or put the folder of libnvinfer "
            "into LD_LIBRARY_PATH."
        ) from error
    fault = unknown_version(tensorrt.__version__)
    if fault is not None:
        raise EngineError(fault)
    return tensorrt


def unknown_version(version: str) -> str | None:
    """Why a version of TensorRT cannot be used, with the remedy; None when it can."""
    if satisfies(version, KNOWN_VERSIONS):
        return None
    return (
        f"Expected TensorRT {KNOWN_VERSIONS}, got {version}; "
        f"pip install 'tensorrt{KNOWN_VERSIONS}'."
    )
