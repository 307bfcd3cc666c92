"""What runs a model: one protocol for all engines, and the table of their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Session", "SessionInfo", "known_engines", "open_session"]


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
        input_shape: The model's input (N, C, H, W); None where any size goes.
    """

    engine: str
    device: str
    provider: str
    libraries: dict[str, str]
    threads: int
    model: str
    model_sha256: str
    input_shape: tuple[int | None, ...]


class Session(Protocol):
    """A model that is loaded and ready to run; a context manager that releases it."""

    @property
    def info(self) -> SessionInfo:
        """What runs, where, and by which versions."""
        ...

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Classify a batch.

        Args:
            images: Normalised images (N, C, H, W).

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


def known_engines() -> tuple[str, ...]:
    """Names that :func:`open_session` takes."""
    return tuple(_OPENERS)


def open_session(engine: str, model: Path, *, threads: int | None = None) -> Session:
    """Load a model into an engine.

    Args:
        engine: One of :func:`known_engines`.
        model: The model's file in the form that the engine reads.
        threads: CPU threads inside one operator; all cores that this process may use if None.

    Raises:
        InvalidInputError: No such engine, or ``threads`` is less than 1.
        MissingDependencyError: The engine's library is not installed.
        OnnxModelError: The file is missing, broken, or no image classifier.
        EngineError: The engine cannot run here.
    """
    if engine not in _OPENERS:
        raise InvalidInputError(
            f"Expected one of the engines {', '.join(_OPENERS)}; got {engine!r}."
        )
    if threads is not None and threads < 1:
        raise InvalidInputError(f"The number of threads must be at least 1; got {threads}.")
    return _OPENERS[engine](model, threads)


def _open_ort_cpu(model: Path, threads: int | None) -> Session:
    from mimiq_runtime.ort_session import OrtSession

    return OrtSession(model, engine="ort-cpu", providers=["CPUExecutionProvider"], threads=threads)


_OPENERS: dict[str, Callable[[Path, int | None], Session]] = {"ort-cpu": _open_ort_cpu}
