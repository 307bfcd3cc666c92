"""Progress on standard error, with the time that is left."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from mimiq_runtime.peak_memory import describe_peak, peak_cuda_mib, peak_rss_mib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["progress_bar"]


@contextlib.contextmanager
def progress_bar(
    description: str, total: int, *, visible: bool = True
) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar with an estimate of the time left.

    It goes to standard error, so that ``--json`` on standard output stays clean, and shows
    nothing where standard error is not a terminal. When the block ends well, the memory that the
    process has taken at most is the last note.

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
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(
        *columns, console=console, disable=not (visible and console.is_terminal)
    ) as progress:
        task = progress.add_task(description, total=total, note="")

        def advance(steps: int, note: str = "") -> None:
            progress.update(task, advance=steps, note=note)

        yield advance
        progress.update(task, note=f"at most {describe_peak(peak_rss_mib(), peak_cuda_mib())}")
