"""Progress of work whose few steps differ: which one is being done, and which are done."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from mimiq_runtime.event_log import note_progress
from mimiq_runtime.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["named_steps", "unseen"]


@contextlib.contextmanager
def named_steps(
    stage: str, total: int, *, directory: Path | None
) -> Iterator[Callable[[str], None]]:
    """Show which step of a stage is being done, and note each that is done in the run's events.

    Args:
        stage: Of the command, such as ``export/ort-cpu``.
        total: Number of steps.
        directory: The run; None for work that belongs to none.

    Yields:
        A function that begins the next step: ``begin(name)``. The one before is done then; the
        last one is done when the block ends well.
    """
    begun: list[str] = []

    def end_last() -> None:
        if begun and directory is not None:
            note_progress(directory, stage, len(begun) - 1, total, name=begun[-1])

    with progress_bar(stage, total, alike=False) as advance:

        def begin(name: str) -> None:
            end_last()
            advance(1 if begun else 0, name)
            begun.append(name)

        yield begin
        end_last()
        advance(total - max(0, len(begun) - 1), "")


def unseen(name: str) -> None:
    """Begin a step where nobody looks."""
