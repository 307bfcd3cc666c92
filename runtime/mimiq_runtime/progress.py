"""Progress on standard error, with the time that is left."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from mimiq_runtime.peak_memory import describe_peak, peak_cuda_mib, peak_rss_mib
from mimiq_runtime.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["progress_bar"]

_SECONDS_BETWEEN_LINES = 30.0


class _Lines:
    """What a progress bar says, in lines for files and logs, also while a step takes long.

    Args:
        description: What is being done.
        total: Number of steps.
        alike: Whether the steps take about the same time each.
    """

    def __init__(self, description: str, total: int, *, alike: bool) -> None:
        self._description = description
        self._total = total
        self._alike = alike
        self._done = 0
        self._note = ""
        self._begun = self._said = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._speak_while_nothing_ends, daemon=True)

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()

    def advance(self, steps: int, note: str) -> None:
        with self._lock:
            self._done += steps
            self._note = note
            if self._first is None:
                # From here on: the first steps may be those of an earlier process, all at once.
                self._first = time.monotonic(), self._done
            self._speak_when_due()

    def _speak_while_nothing_ends(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_LINES):
            with self._lock:
                self._speak_when_due()

    def _speak_when_due(self) -> None:
        now = time.monotonic()
        if now - self._said < _SECONDS_BETWEEN_LINES:
            return
        self._said = now
        if self._alike:
            parts = [f"{self._done} of {self._total}", self._time_left(now)]
        else:
            step = min(self._done + 1, self._total)
            parts = [f"step {step} of {self._total}", f"{_clock(now - self._begun)} so far"]
        parts = [part for part in (*parts, self._note) if part]
        print(f"{self._description}: {', '.join(parts)}", file=sys.stderr)

    def _time_left(self, now: float) -> str:
        begun, before = self._first or (now, self._done)
        if self._done == before:
            return ""
        each = (now - begun) / (self._done - before)
        return f"about {_clock(each * (self._total - self._done))} left"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def progress_bar(
    description: str, total: int, *, visible: bool = True, alike: bool = True
) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar with an estimate of the time left.

    It goes to standard error, so that ``--json`` on standard output stays clean. Where standard
    error is no terminal, as in CI, long work writes a line every half minute instead, also while
    one step takes longer than that. When the block ends well, the memory that the process has
    taken at most is the last note.

    Args:
        description: What is being done.
        total: Number of steps.
        visible: False for all but one of several processes that do the same.
        alike: Whether the steps take about the same time each. Of others nobody knows the time that
            is left; then the time so far is told, and which step is being done.

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
        *([TimeRemainingColumn()] if alike else []),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(
            Progress(*columns, console=console, disable=not (visible and console.is_terminal))
        )
        task = progress.add_task(description, total=total, note="")
        lines = None
        if visible and not console.is_terminal:
            lines = stack.enter_context(_Lines(description, total, alike=alike))

        def advance(steps: int, note: str = "") -> None:
            note = printable(note)
            progress.update(task, advance=steps, note=note)
            if lines is not None:
                lines.advance(steps, note)

        yield advance
        progress.update(task, note=f"at most {describe_peak(peak_rss_mib(), peak_cuda_mib())}")
