"""What an engine's library raises, as one sentence for the person on the device."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from mimiq_runtime.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["import_library", "no_traceback"]


def import_library(name: str) -> Any:
    """Import what ``requirements.txt`` names.

    Raises:
        EngineError: It is not installed, or cannot load libraries of its own.
    """
    try:
        return importlib.import_module(name)
    # Wheels that load their own libraries raise OSError for those.
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise EngineError(f"{reason}; pip install -r requirements.txt.") from error


@contextlib.contextmanager
def no_traceback(library: str, verb: str, model: Path) -> Iterator[None]:
    """Turn whatever the library raises into an :class:`EngineError`.

    Args:
        library: Its name and version.
        verb: What it shall do with the model.
        model: The model's file.
    """
    try:
        yield
    # The exceptions of engines have no base of their own.
    except Exception as error:
        # OpenVINO begins with the places in its own source.
        lines = [
            line for line in str(error).splitlines() if line and "Exception from" not in line
        ] or [type(error).__name__]
        raise EngineError(
            f"{library} cannot {verb} {model.name}: {lines[0].rstrip('.')}; README.md and "
            "requirements.txt name the versions that it needs."
        ) from error
