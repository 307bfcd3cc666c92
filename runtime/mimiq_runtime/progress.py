"""Progress on standard error, with the time that is left."""

from __future__ import annotations

import contextlib
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from mimiq_runtime.peak_memory import describe_peak, peak_cuda_mib, peak_rss_mib
from mimiq_runtime.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["progress_bar"]

_SECONDS_BETWEEN_LINES = 30.0


class _Lines:
    """What a progress bar says, in lines for files and logs.

    Args:
        description: What is being done.
        total: Number of steps.
    """

    def __init__(self, description: str, total: int) -> None:
        self._description = description
        self._total = total
        self._done = 0
        self._said = time.monotonic()
        self._first: tuple[float, int] | None = None

    def advance(self, steps: int, note: str) -> None:
        now = time.monotonic()
        self._done += steps
        if self._first is None:
            # From here on: the first steps may be those of an earlier process, all at once.
            self._first = now, self._done
        if now - self._said < _SECONDS_BETWEEN_LINES:
            return
        self._said = now
        begun, before = self._first
        parts = [f"{self._done} of {self._total}"]
        if self._done > before:
            left = (now - begun) / (self._done - before) * (self._total - self._done)
            parts.append(f"about {timedelta(seconds=round(left))} left")
        print(f"{self._description}: {', '.join([*parts, *filter(None, [note])])}", file=sys.stderr)


@contextlib.contextmanager
def progress_bar(
    description: str, total: int, *, visible: bool = True
) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar with an estimate of the time left.

    It goes to standard error, so that ``--json`` on standard output stays clean. Where standard
    error is no terminal, as in CI, long work writes a line every half minute instead. When the
    block ends well, the memory that the process has taken at most is the last note.

    Args:
        description: What is being done.
        total: Number of steps.
        visible: False for all but one of several processes that do the same.

    Yields:
        A function that advances the bar: ``advance(steps, note)``.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(
        *columns, console=console, disable=not (visible and console.is_terminal)
    ) as progress:
        task = progress.add_task(description, total=total, note="")
        lines = _Lines(description, total) if visible and not console.is_terminal else None

        def advance(steps: int, note: str = "") -> None:
            note = printable(note)
            progress.update(task, advance=steps, note=note)
            if lines is not None:
                lines.advance(steps, note)

        yield advance
        progress.update(task, note=f"at most {describe_peak(peak_rss_mib(), peak_cuda_mib())}")
