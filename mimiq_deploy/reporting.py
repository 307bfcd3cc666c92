"""Reporting on runs: what needs torch is measured first, where torch is; the page needs none."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from mimiq_deploy.inside_view import look_inside, why_not_inside
from mimiq_runtime.errors import InvalidInputError, MimiqDeployError
from mimiq_runtime.inside_view import read_inside_record
from mimiq_runtime.output_file import check_output_file
from mimiq_runtime.report.page import check_libraries, is_report, render_page, write_page

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["REPORT", "report_runs"]

REPORT = "report.html"
"""Its place in a run directory."""


def report_runs(
    runs: Sequence[RunDirectory], output: Path | None = None, *, data: Path | None = None
) -> Path:
    """Write the report of one run or several.

    The run that the page becomes part of is held against other writers from beginning to end. The
    others are only read; one that nobody has looked into is held while that is written into it, and
    where another process has it, the page says so.

    Args:
        runs: The runs, in the order of the page.
        output: The HTML file; ``report.html`` in the run if None and there is one run.
        data: Folder of the pictures that were validated, for thumbnails; None leaves photographs
            out of the page.

    Returns:
        Where it was written.

    Raises:
        MissingDependencyError: matplotlib or jinja2 is not installed.
        InvalidInputError: Several runs without an output, the same run twice, or a file that
            cannot be written.
        RunLockedError: Another process is writing the run that the page belongs to.
    """
    check_libraries()
    if output is None and len(runs) != 1:
        raise InvalidInputError(
            f"The report of {len(runs)} runs belongs to none of them; say where it shall be with "
            "--output FILE."
        )
    if len({run.root.resolve() for run in runs}) != len(runs):
        raise InvalidInputError("A run was given twice; name each run once.")
    path = runs[0].path(REPORT) if output is None else output
    owner = _owner(runs, path)
    with contextlib.nullcontext() if owner is None else owner.writing("report"):
        reasons = {run.root: reason for run in runs if (reason := _try_to_look_inside(run))}
        if owner is None:
            write_page(runs, path, data=data, not_inside=reasons)
        else:
            html = render_page(runs, data=data, not_inside=reasons)
            owner.write_bytes(REPORT, html.encode())
    return path


def _owner(runs: Sequence[RunDirectory], output: Path) -> RunDirectory | None:
    """The run whose own report a file is; None for a file elsewhere.

    Raises:
        InvalidInputError: Something else would be lost there.
    """
    for run in runs:
        if output.name == REPORT and os.path.realpath(output.parent) == os.path.realpath(run.root):
            return run
    check_output_file(output, "--output")
    # An empty file is one that somebody made for the page, as mktemp does.
    if output.exists() and output.stat().st_size and not is_report(output):
        raise InvalidInputError(
            f"{output} exists already and is no report, and is not replaced; give another --output."
        )
    return None


def _try_to_look_inside(run: RunDirectory) -> str | None:
    """Measure what is not there yet; the reason where that cannot be done."""
    try:
        if read_inside_record(run) is not None:
            return None
        reason = why_not_inside(run)
        if reason is None:
            look_inside(run)
    except MimiqDeployError as error:
        return str(error)
    return reason
