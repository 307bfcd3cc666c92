"""A session of ONNX Runtime, on the provider that was asked for and on no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mimiq_runtime.atomic import sha256_of
from mimiq_runtime.errors import (
    EngineError,
    InvalidInputError,
    MissingDependencyError,
    OnnxModelError,
)
from mimiq_runtime.machine import usable_cores
from mimiq_runtime.session import SessionInfo

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

__all__ = ["OrtSession"]

# Errors reach the user as exceptions; ONNX Runtime would print each of them as well.
_LOG_FATAL_ONLY = 4

# What is not the model's fault: memory, drivers, libraries of the provider.
_PROVIDER_FAULTS = ("EPFail", "RuntimeException")


class OrtSession:
    """An image classifier in ONNX Runtime.

    Args:
        model: The ONNX file: one float32 input (N, C, H, W), one output (N, classes).
        engine: Name of the engine, for :attr:`info`.
        providers: Execution providers in ONNX Runtime's form, a name or a name with options. The
            first one is what was asked for; those after it may take what it cannot run.
        threads: Threads inside one operator; all cores that this process may use if None.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        OnnxModelError: The file is missing, broken, or not such a model.
        EngineError: The first provider is not there, or did not take the model.
    """

    def __init__(
        self,
        model: Path,
        *,
        engine: str,
        providers: Sequence[str | tuple[str, dict[str, Any]]],
        threads: int | None = None,
    ) -> None:
        ort = _import_onnxruntime()
        wanted = _first_name(providers)
        available = ort.get_available_providers()
        if wanted not in available:
            raise EngineError(
                f"Expected ONNX Runtime with {wanted}, got one with {', '.join(available)}; "
                "install the build of onnxruntime that has it."
            )
        threads = threads if threads is not None else usable_cores()
        self._session: Any = _create(ort, model, providers, threads)
        taken = self._session.get_providers()[0]
        if taken != wanted:
            raise EngineError(
                f"Expected {wanted} to take {model}, and ONNX Runtime fell back to {taken}; "
                "check the provider's driver and libraries."
            )
        self._input_name, shape = _check_signature(model, self._session)
        self.info = SessionInfo(
            engine=engine,
            device=_device(wanted),
            provider=wanted,
            libraries={"onnxruntime": ort.__version__},
            threads=threads,
            model=str(model),
            model_sha256=sha256_of(model),
            input_shape=shape,
        )

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, classes) of normalised images (N, C, H, W); see :class:`Session`."""
        if self._session is None:
            raise EngineError("This session is closed; open another one.")
        _check_images(images, self.info.input_shape)
        try:
            outputs = self._session.run(None, {self._input_name: images})
        # Its exceptions have no base of their own.
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime failed to run {self.info.model}: {_first_line(error)}."
            ) from error
        logits = np.asarray(outputs[0], dtype=np.float32)
        if logits.ndim != 2 or len(logits) != len(images):
            raise EngineError(
                f"Expected logits of shape ({len(images)}, classes) from {self.info.model}, "
                f"got {logits.shape}; export the model with a free batch size."
            )
        return logits

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._session = None


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", "ort") from error
    return onnxruntime


def _first_name(providers: Sequence[str | tuple[str, dict[str, Any]]]) -> str:
    if not providers:
        raise InvalidInputError("Expected at least one execution provider; got none.")
    first = providers[0]
    return first if isinstance(first, str) else first[0]


def _device(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider").lower()


def _create(
    ort: Any,
    model: Path,
    providers: Sequence[str | tuple[str, dict[str, Any]]],
    threads: int,
) -> Any:
    if not model.is_file():
        raise OnnxModelError(f"Expected an ONNX file, and {model} is not one; check the path.")
    # The default logger speaks of providers before there is a session.
    ort.set_default_logger_severity(_LOG_FATAL_ONLY)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_FATAL_ONLY
    try:
        session = ort.InferenceSession(str(model), options, providers=list(providers))
    # Its exceptions have no base of their own.
    except Exception as error:
        if type(error).__name__ in _PROVIDER_FAULTS:
            raise EngineError(
                f"ONNX Runtime could not load {model}: {_first_line(error)}."
            ) from error
        raise OnnxModelError(
            f"{model} is not a model that ONNX Runtime {ort.__version__} can run: "
            f"{_first_line(error)}; export it again."
        ) from error
    # Without this, a failing run is repeated on the CPU and nobody is told.
    session.disable_fallback()
    return session


def _check_signature(model: Path, session: Any) -> tuple[str, tuple[int | None, ...]]:
    """Name and shape of the only input, None where any size goes."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    fits = (
        len(inputs) == len(outputs) == 1
        and inputs[0].type == "tensor(float)"
        and len(inputs[0].shape) == 4
    )
    if not fits:
        got = ", ".join(f"{value.name}: {value.type} {value.shape}" for value in inputs)
        raise OnnxModelError(
            f"Expected one input tensor(float) of shape (N, C, H, W) and one output, got "
            f"inputs ({got}) and {len(outputs)} output(s) in {model}; export an image classifier."
        )
    shape = tuple(size if isinstance(size, int) else None for size in inputs[0].shape)
    return inputs[0].name, shape


def _check_images(images: NDArray[np.float32], shape: tuple[int | None, ...]) -> None:
    fits = (
        images.dtype == np.float32
        and images.ndim == 4
        and len(images) > 0
        and all(size in (None, got) for size, got in zip(shape, images.shape, strict=True))
    )
    if not fits:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise InvalidInputError(
            f"Expected float32 images of shape ({expected}), at least one, got {images.dtype} of "
            f"shape {images.shape}; preprocess them for this model."
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
