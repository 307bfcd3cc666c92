"""A session of ONNX Runtime, on the provider that was asked for and on no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mimiq_runtime.atomic import sha256_of
from mimiq_runtime.classifier_checks import (
    check_images,
    check_logits,
    check_onnx_file,
    first_line,
)
from mimiq_runtime.errors import (
    EngineError,
    InvalidInputError,
    MissingDependencyError,
    OnnxModelError,
)
from mimiq_runtime.input_form import InputForm, input_form
from mimiq_runtime.machine import usable_cores
from mimiq_runtime.session import SessionInfo

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

__all__ = ["OrtSession", "import_onnxruntime"]

# Errors reach the user as exceptions; ONNX Runtime would print each of them as well.
_LOG_FATAL_ONLY = 4

# What is not the model's fault: memory, drivers, libraries of the provider.
_PROVIDER_FAULTS = ("EPFail", "RuntimeException")

_CPU = "CPUExecutionProvider"

# Operators that hold nearly all of the work, and the parts of their names after fusion.
_PRODUCTS = ("MatMul", "Gemm", "Conv", "Attention")

_TYPES = {InputForm.NORMALISED: "tensor(float)", InputForm.PIXELS: "tensor(uint8)"}


class OrtSession:
    """An image classifier in ONNX Runtime.

    Args:
        model: The ONNX file: one input, one output (N, classes). The input is float32
            (N, C, H, W), or uint8 (N, H, W, C) where the file's metadata says so.
        engine: Name of the engine, for :attr:`info`.
        providers: Execution providers in ONNX Runtime's form, a name or a name with options. The
            first one is what was asked for; those after it may take what it cannot run, but no
            matrix product and no convolution.
        threads: Threads inside one operator; all cores that this process may use if None.
        tensors: Names of the outputs that the file has behind the logits; see
            :meth:`run_and_read`.
        optimize: Whether ONNX Runtime may rewrite the graph before the provider sees it.
        precision: What the provider computes floating point in, for :attr:`info`.
        remedy: What to do when the provider does not take the model.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        OnnxModelError: The file is missing, broken, or not such a model.
        EngineError: The first provider is not there, or did not take the model or a part of it.
    """

    def __init__(
        self,
        model: Path,
        *,
        engine: str,
        providers: Sequence[str | tuple[str, dict[str, Any]]],
        threads: int | None = None,
        tensors: Sequence[str] = (),
        optimize: bool = True,
        precision: str | None = None,
        remedy: str = "check the provider's driver and libraries",
    ) -> None:
        ort = import_onnxruntime()
        wanted = _first_name(providers)
        available = ort.get_available_providers()
        if wanted not in available:
            raise EngineError(
                f"Expected ONNX Runtime with {wanted}, got one with {', '.join(available)}; "
                "install the build of onnxruntime that has it."
            )
        threads = threads if threads is not None else usable_cores()
        options = _options(ort, threads, optimize=optimize)
        self._session: Any = _create(ort, model, providers, options, remedy)
        taken = self._session.get_providers()[0]
        if taken != wanted:
            raise EngineError(
                f"Expected {wanted} to take {model}, and ONNX Runtime fell back to {taken}; "
                f"{remedy}."
            )
        takes = input_form(self._session.get_modelmeta().custom_metadata_map)
        self._input_name, shape = _check_signature(model, self._session, takes, tensors)
        self._tensors = list(tensors)
        self.info = SessionInfo(
            engine=engine,
            device=_device(wanted),
            provider=wanted,
            libraries={"onnxruntime": ort.__version__},
            threads=threads,
            model=str(model),
            model_sha256=sha256_of(model),
            input_shape=shape,
            takes=takes,
            precision=precision,
            products=None if wanted == _CPU else _check_products(model, self._session, wanted),
        )

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Logits (N, classes) of images in the form that the model takes; see :class:`Session`."""
        return self.run_and_read(images)[0]

    def run_and_read(
        self, images: NDArray[Any]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Logits, and the tensors that were asked for; see :class:`ReadsTensors`."""
        if self._session is None:
            raise EngineError("This session is closed; open another one.")
        check_images(images, self.info.input_shape, self.info.takes)
        try:
            outputs = self._session.run(None, {self._input_name: images})
        # Its exceptions have no base of their own.
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime failed to run {self.info.model}: {first_line(error)}."
            ) from error
        logits = check_logits(np.asarray(outputs[0]), len(images), self.info.model)
        return logits, dict(zip(self._tensors, outputs[1:], strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._session = None


def import_onnxruntime() -> Any:
    """The module; raises :class:`MissingDependencyError` where it is not installed."""
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


def _options(ort: Any, threads: int, *, optimize: bool) -> Any:
    # The default logger speaks of providers before there is a session.
    ort.set_default_logger_severity(_LOG_FATAL_ONLY)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_FATAL_ONLY
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _create(
    ort: Any,
    model: Path,
    providers: Sequence[str | tuple[str, dict[str, Any]]],
    options: Any,
    remedy: str,
) -> Any:
    check_onnx_file(model)
    on_cpu = _first_name(providers) == _CPU
    try:
        # With its fallback, a failing provider is replaced by the CPU and a few lines on stdout.
        session = ort.InferenceSession(
            str(model), options, providers=list(providers), enable_fallback=False
        )
    # Its exceptions have no base of their own.
    except Exception as error:
        # Providers that cannot load their libraries raise Python's own RuntimeError.
        if type(error).__name__ in _PROVIDER_FAULTS or (type(error) is RuntimeError and not on_cpu):
            raise EngineError(
                f"ONNX Runtime could not load {model}: {first_line(error)}"
                f"{'' if on_cpu else f'; {remedy}'}."
            ) from error
        raise OnnxModelError(
            f"{model} is not a model that ONNX Runtime {ort.__version__} can run: "
            f"{first_line(error)}; export it again, or update onnxruntime."
        ) from error
    # Without this, a failing run is repeated on the CPU and nobody is told.
    session.disable_fallback()
    return session


def _check_products(model: Path, session: Any, wanted: str) -> dict[str, int] | None:
    """Number of products by provider; None from an ONNX Runtime that does not tell (before 1.24).

    The name of the first provider says little: ONNX Runtime hands each node that it does not take
    to the next one.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    counts: dict[str, int] = {}
    strays = []
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            if any(name in node.op_type for name in _PRODUCTS):
                counts[part.ep_name] = counts.get(part.ep_name, 0) + 1
                if part.ep_name != wanted:
                    strays.append(f"{node.op_type} {node.name}")
    if strays:
        raise EngineError(
            f"Expected {wanted} to take all products of {model}, and it left {len(strays)} to "
            f"other providers, the first of them {strays[0]}; export the model for this engine."
        )
    return counts


def _check_signature(
    model: Path, session: Any, takes: InputForm, tensors: Sequence[str]
) -> tuple[str, tuple[int | None, ...]]:
    """Name and shape of the only input, None where any size goes."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    expected = _TYPES[takes]
    fits = (
        len(inputs) == 1
        and [value.name for value in outputs[1:]] == list(tensors)
        and inputs[0].type == expected
        and len(inputs[0].shape) == 4
    )
    if not fits:
        got = ", ".join(f"{value.name}: {value.type} {value.shape}" for value in inputs)
        raise OnnxModelError(
            f"Expected one input {expected} of shape {takes.axes} and one output, got "
            f"inputs ({got}) and {len(outputs)} output(s) in {model}; export an image classifier."
        )
    shape = tuple(size if isinstance(size, int) else None for size in inputs[0].shape)
    return inputs[0].name, shape
