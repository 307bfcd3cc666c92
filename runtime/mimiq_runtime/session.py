"""What runs a model: one protocol for all engines, and the table of their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeAlias, runtime_checkable

from mimiq_runtime.errors import EngineError, InvalidInputError
from mimiq_runtime.input_form import InputForm
from mimiq_runtime.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    _OpenReading: TypeAlias = Callable[[Path, int | None, Sequence[str]], "ReadsTensors"]

__all__ = [
    "DeviceTimes",
    "ReadsTensors",
    "Session",
    "SessionInfo",
    "TimedOnDevice",
    "check_tensors_can_be_read",
    "known_engines",
    "needs_gpu",
    "open_reading_session",
    "open_session",
    "target_of",
]


class SessionInfo(Schema):
    """What runs, where, and by which versions.

    Attributes:
        engine: Name of the engine, as given to :func:`open_session`.
        device: What computes, such as ``cpu``.
        provider: The engine's own name of what computes, such as ``CPUExecutionProvider``.
        libraries: Version of each library that takes part.
        threads: Number of CPU threads inside one operator.
        model: Path of the model's file as it was given.
        model_sha256: SHA-256 of that file.
        input_shape: The model's input, (N, C, H, W) or (N, H, W, C) according to ``takes``; None
            where any size goes.
        takes: The form of the images that the model takes.
        precision: What floating-point arithmetic runs in, where the engine may choose it; None
            where it is the one that the model's file says.
        products: Number of Linear layers, attention products and convolutions by the place or the
            precision that the engine itself reports for them; None where it does not tell.
    """

    engine: str
    device: str
    provider: str
    libraries: dict[str, str]
    threads: int
    model: str
    model_sha256: str
    input_shape: tuple[int | None, ...]
    takes: InputForm = InputForm.NORMALISED
    precision: str | None = None
    products: dict[str, int] | None = None


class DeviceTimes(NamedTuple):
    """Durations of one call in milliseconds, measured by events of the device.

    Attributes:
        compute_ms: The network alone, its input already on the device.
        total_ms: With the copy of the images to the device and of the logits back.
    """

    compute_ms: float
    total_ms: float


class Session(Protocol):
    """A model that is loaded and ready to run; a context manager that releases it."""

    @property
    def info(self) -> SessionInfo:
        """What runs, where, and by which versions."""
        ...

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Classify a batch.

        Args:
            images: Images in the form that ``info.takes`` names; see
                :func:`mimiq_runtime.preprocessing.model_input`.

        Returns:
            Logits (N, classes).

        Raises:
            InvalidInputError: The images do not fit the model's input.
            EngineError: The engine failed, or the session is closed.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class TimedOnDevice(Protocol):
    """A session that also measures its calls by events of the device."""

    def device_times(self) -> DeviceTimes:
        """Durations of the last call of ``run``.

        Raises:
            EngineError: There was no call yet.
        """
        ...


class ReadsTensors(Session, Protocol):
    """A session that also gives tensors from inside the model."""

    def run_and_read(
        self, images: NDArray[Any]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Classify a batch, and read the tensors that the session was opened for.

        Args:
            images: As for ``run``.

        Returns:
            Logits (N, classes), and the tensors by name.

        Raises:
            InvalidInputError: The images do not fit the model's input.
            EngineError: The engine failed, or the session is closed.
        """
        ...


@dataclass(frozen=True)
class _Engine:
    """What is known of an engine without its library.

    Attributes:
        target: The export that it reads (docs/decisions/0018-engines-and-targets.md).
        needs_gpu: Whether it runs on an NVIDIA GPU only.
        open: Makes a session from a model's file and a number of threads.
        open_reading: The same, with names of tensors; None where the engine is compiled as a
            whole and has no tensors to read.
    """

    target: str
    needs_gpu: bool
    open: Callable[[Path, int | None], Session]
    open_reading: _OpenReading | None = None


def known_engines() -> tuple[str, ...]:
    """Names that :func:`open_session` takes."""
    return tuple(_ENGINES)


def target_of(engine: str) -> str:
    """Name of the export that an engine reads.

    Raises:
        InvalidInputError: No such engine.
    """
    return _engine(engine).target


def needs_gpu(engine: str) -> bool:
    """Whether an engine runs on an NVIDIA GPU only.

    Raises:
        InvalidInputError: No such engine.
    """
    return _engine(engine).needs_gpu


def open_session(engine: str, model: Path, *, threads: int | None = None) -> Session:
    """Load a model into an engine.

    Args:
        engine: One of :func:`known_engines`.
        model: The model's file in the form that the engine reads: an ONNX file, or for ``trt`` the
            plan that ``mimiq-deploy build`` wrote.
        threads: CPU threads inside one operator; all cores that this process may use if None.

    Raises:
        InvalidInputError: No such engine, or ``threads`` is less than 1.
        MissingDependencyError: The engine's library is not installed.
        OnnxModelError: The file is missing, broken, or no image classifier.
        EngineError: The engine cannot run here.
    """
    chosen = _engine(engine)
    _check_threads(threads)
    return chosen.open(model, threads)


def open_reading_session(
    engine: str, model: Path, tensors: Sequence[str], *, threads: int | None = None
) -> ReadsTensors:
    """Load a model that has more outputs than its logits.

    Args:
        engine: One of :func:`known_engines`.
        model: An ONNX file whose outputs are the logits and then ``tensors``.
        tensors: Names of the further outputs, in their order.
        threads: As for :func:`open_session`.

    Raises:
        EngineError: The engine has no tensors to read, or cannot run here.
        InvalidInputError: As :func:`open_session`.
        MissingDependencyError: As :func:`open_session`.
        OnnxModelError: As :func:`open_session`.
    """
    _check_threads(threads)
    return check_tensors_can_be_read(engine)(model, threads, tensors)


def check_tensors_can_be_read(engine: str) -> _OpenReading:
    """What opens a session that gives tensors from inside the model.

    Raises:
        EngineError: The engine has no tensors to read.
        InvalidInputError: No such engine.
    """
    open_reading = _engine(engine).open_reading
    if open_reading is None:
        able = [name for name, other in _ENGINES.items() if other.open_reading is not None]
        raise EngineError(
            f"{engine} compiles a model as a whole, and no tensor inside it can be read; compare "
            f"layers in {', '.join(able)}."
        )
    return open_reading


def _check_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise InvalidInputError(f"The number of threads must be at least 1; got {threads}.")


def _engine(name: str) -> _Engine:
    if name not in _ENGINES:
        raise InvalidInputError(f"Expected one of the engines {', '.join(_ENGINES)}; got {name!r}.")
    return _ENGINES[name]


def _open_ort_cpu(model: Path, threads: int | None, tensors: Sequence[str] = ()) -> ReadsTensors:
    from mimiq_runtime.ort_session import OrtSession

    return OrtSession(
        model,
        engine="ort-cpu",
        providers=["CPUExecutionProvider"],
        threads=threads,
        tensors=tensors,
    )


def _open_ort_cuda(model: Path, threads: int | None, tensors: Sequence[str] = ()) -> ReadsTensors:
    from mimiq_runtime.ort_gpu import open_cuda

    return open_cuda(model, threads, tensors)


def _open_ort_trt(model: Path, threads: int | None) -> Session:
    from mimiq_runtime.ort_gpu import open_tensorrt

    return open_tensorrt(model, threads)


def _open_openvino(model: Path, threads: int | None, tensors: Sequence[str] = ()) -> ReadsTensors:
    from mimiq_runtime.openvino_session import OpenVinoSession

    return OpenVinoSession(model, threads=threads, tensors=tensors)


def _open_trt(model: Path, threads: int | None) -> Session:
    from mimiq_runtime.trt_session import TrtSession

    return TrtSession(model)


_ENGINES = {
    "ort-cpu": _Engine("ort-cpu", needs_gpu=False, open=_open_ort_cpu, open_reading=_open_ort_cpu),
    "ort-cuda": _Engine(
        "ort-cuda", needs_gpu=True, open=_open_ort_cuda, open_reading=_open_ort_cuda
    ),
    "ort-trt": _Engine("trt", needs_gpu=True, open=_open_ort_trt),
    "openvino": _Engine(
        "openvino", needs_gpu=False, open=_open_openvino, open_reading=_open_openvino
    ),
    "trt": _Engine("trt", needs_gpu=True, open=_open_trt),
}
