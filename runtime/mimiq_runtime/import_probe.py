"""Imports libraries, and says how each of them went: the program of a process of its own.

``python -P import_probe.py NAME...`` prints one JSON object for each name, as soon as it is known:
whoever reads a line short knows which library brought the process down. It stands alone, without
anything else of this package. What libraries print goes to standard error.

Beside modules there are two names: ``cuda-driver`` is NVIDIA's driver itself, and
``onnxruntime-cuda`` the library of ONNX Runtime's CUDA provider, whose own libraries (cuDNN and
cuBLAS among them) are looked for only when a model is opened.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["CUDA_DRIVER", "CUDA_PROVIDER"]

CUDA_DRIVER, CUDA_PROVIDER = "cuda-driver", "onnxruntime-cuda"

_PROVIDER_LIBRARIES = ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")


def _import_module(name: str) -> dict[str, Any]:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Another module that is missing inside of an installed one is an error of that one.
        missing = error.name is not None and name.startswith(error.name)
        return {"installed": not missing, "error": None if missing else _words(error)}
    # A wheel that does not fit its libraries fails in as many ways as there are loaders.
    except BaseException as error:
        return {"installed": True, "error": _words(error)}
    facts: dict[str, Any] = {"installed": True, "error": None}
    if name == "onnxruntime":
        facts["providers"] = list(module.get_available_providers())
    return facts


def _load_cuda_provider() -> dict[str, Any]:
    """What keeps ONNX Runtime from loading its CUDA provider, if anything does."""
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    libraries = [folder / name for name in _PROVIDER_LIBRARIES]
    if not all(library.is_file() for library in libraries):
        return {"installed": False, "error": None}
    # Since 1.21: from the wheels that the extras [cuda,cudnn] bring.
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    try:
        for library in libraries:
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except OSError as error:
        return {"installed": True, "error": _words(error)}
    return {"installed": True, "error": None}


def _ask_cuda_driver() -> dict[str, Any]:
    """Newest CUDA of the driver, as 1000 * major + 10 * minor, and the number of its devices."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError as error:
        return {"installed": False, "error": _words(error)}
    version, devices = ctypes.c_int(), ctypes.c_int()
    status = (
        driver.cuDriverGetVersion(ctypes.byref(version))
        or driver.cuInit(0)
        or driver.cuDeviceGetCount(ctypes.byref(devices))
    )
    return {
        "installed": True,
        "error": None if status == 0 else f"CUDA's driver gives error {status}",
        "version": version.value,
        "devices": devices.value,
    }


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _main(names: list[str]) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for name in names:
        if name == CUDA_DRIVER:
            found = _ask_cuda_driver()
        elif name == CUDA_PROVIDER:
            found = _load_cuda_provider()
        else:
            found = _import_module(name)
        print(json.dumps({"name": name, **found}), file=answers, flush=True)
    answers.flush()
    # What libraries do when a process ends is not asked for, and some crash then.
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1:])
