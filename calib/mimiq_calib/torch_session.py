"""A torch model behind the runtime's session protocol, to compare engines with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from mimiq_runtime.errors import EngineError
from mimiq_runtime.machine import library_versions
from mimiq_runtime.session import SessionInfo

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TorchSession"]


class TorchSession:
    """Runs a teacher or a student on the CPU.

    Args:
        model: A model in inference mode.
        name: What it is, such as ``fake-quantized``.
        origin: Path of its weights, and their SHA-256.
        input_shape: Channels, height and width of its input.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        origin: tuple[str, str],
        input_shape: tuple[int, int, int],
    ) -> None:
        self._model: nn.Module | None = model
        path, sha256 = origin
        self._info = SessionInfo(
            engine=name,
            device="cpu",
            provider="torch",
            libraries=library_versions(["torch", "timm"]),
            threads=torch.get_num_threads(),
            model=path,
            model_sha256=sha256,
            input_shape=(None, *input_shape),
        )

    @property
    def info(self) -> SessionInfo:
        """What runs, where, and by which versions."""
        return self._info

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Classify normalised images (N, C, H, W); return logits (N, classes).

        Raises:
            EngineError: The session is closed.
        """
        if self._model is None:
            raise EngineError(f"The session of {self._info.engine} is closed.")
        with torch.inference_mode():
            logits: NDArray[np.float32] = self._model(torch.from_numpy(images)).float().numpy()
        return logits

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._model = None
