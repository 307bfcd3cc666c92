"""Where ONNX Runtime keeps the engines that its TensorRT provider builds: with the user.

A compiled engine is loaded without a question, and written through any link. So none is looked for
beside a model, which may come from somebody else: the folder is the user's own, and named after
the content of the model and the versions that compiled it. ONNX Runtime itself tells engines apart
by the graph and the GPU, not by weights (docs/decisions/0041-engines-of-strangers.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mimiq_runtime.errors import EngineError
from mimiq_runtime.onnx_external_data import check_external_data, external_data_of

__all__ = ["engine_cache"]

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def engine_cache(model: Path, onnxruntime: str) -> Path | None:
    """The folder of the engines of one model; made where it is not there.

    Args:
        model: The ONNX file.
        onnxruntime: Version of ONNX Runtime.

    Returns:
        ``mimiq-deploy/ort-trt/<digest>`` in ``$XDG_CACHE_HOME``, or in ``~/.cache`` without; None
        where that cannot be written.

    Raises:
        EngineError: One of these folders is a link, or others can write there.
        OnnxModelError: The model is broken, or takes weights from elsewhere.
    """
    check_external_data(model)
    name = _digest(model, onnxruntime)
    try:
        folder = _users_cache()
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("mimiq-deploy", "ort-trt", name):
            folder = folder / part
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            _check_own(folder)
    except (OSError, RuntimeError):  # no home
        return None
    return folder


def _users_cache() -> Path:
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # By the XDG Base Directory Specification, a relative path is to be ignored.
    return named if named.is_absolute() else Path.home() / ".cache"


def _check_own(folder: Path) -> None:
    found = folder.lstat()
    private = found.st_uid == os.geteuid() and not found.st_mode & _OTHERS_MAY_WRITE
    if not (stat.S_ISDIR(found.st_mode) and private):
        raise EngineError(
            f"ONNX Runtime would load engines from {folder}, which is not a folder that you alone "
            "can write to; remove it, or set XDG_CACHE_HOME to another folder."
        )


def _digest(model: Path, onnxruntime: str) -> str:
    """Of all that an engine is made of."""
    names = dict.fromkeys(reference.location for reference in external_data_of(model))
    made_of = [onnxruntime, _tensorrt()]
    for path in (model, *(model.parent / name for name in names)):
        with path.open("rb") as file:
            made_of.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("\n".join(made_of).encode()).hexdigest()


def _tensorrt() -> str:
    try:
        return version("tensorrt")
    except PackageNotFoundError:
        return "unknown"
