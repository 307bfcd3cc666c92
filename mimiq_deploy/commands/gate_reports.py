"""The files in which a gate tells a CI server its verdict: JUnit XML and Markdown."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mimiq_deploy.validation import ValidationReport
    from mimiq_runtime.benchmark import BenchmarkReport

__all__ = ["GateReports", "junit_option", "markdown_option"]

junit_option = click.option(
    "--junit",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the gates as JUnit XML.",
)
"""``--junit FILE``; the parameter ``junit``, a path or None."""

markdown_option = click.option(
    "--markdown",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write tables as Markdown; append where FILE is $GITHUB_STEP_SUMMARY.",
)
"""``--markdown FILE``; the parameter ``markdown``, a path or None."""


@dataclass(frozen=True)
class GateReports:
    """Where a command writes what it found.

    Attributes:
        command: Its name.
        junit: File of JUnit XML, or None.
        markdown: File of Markdown, or None.
        inputs: Files that the command reads.
    """

    command: str
    junit: Path | None
    markdown: Path | None
    inputs: Sequence[Path]

    def check_junit(self) -> None:
        """Refuse a file of JUnit XML where something would be lost.

        Raises:
            InvalidInputError: As :func:`mimiq_runtime.output_file.check_output_file`.
        """
        from mimiq_runtime.output_file import check_output_file

        if self.junit is not None:
            check_output_file(self.junit, "--junit", inputs=self.inputs)

    @contextlib.contextmanager
    def errors_are_told(self) -> Iterator[None]:
        """Write what ends the block into the JUnit XML, too: no verdict is not a verdict.

        Raises:
            InvalidInputError: The Markdown would be written where something would be lost.
        """
        from mimiq_deploy.junit import write_junit_of_error
        from mimiq_runtime.errors import InvalidInputError, MimiqDeployError

        try:
            self._check_markdown()
            yield
        except MimiqDeployError as error:
            if self.junit is not None:
                # What went wrong is more than that it could not be written down.
                with contextlib.suppress(InvalidInputError):
                    write_junit_of_error(error, self.junit, command=self.command)
            raise

    def write(self, report: ValidationReport | BenchmarkReport) -> None:
        """Write what was found.

        Raises:
            InvalidInputError: A file cannot be written.
        """
        from mimiq_deploy.junit import write_junit
        from mimiq_deploy.step_summary import write_step_summary

        if self.junit is not None:
            write_junit(report, self.junit)
        if self.markdown is not None:
            write_step_summary(report, self.markdown)

    def _check_markdown(self) -> None:
        from mimiq_runtime.errors import InvalidInputError
        from mimiq_runtime.output_file import check_output_file

        if self.markdown is None:
            return
        check_output_file(self.markdown, "--markdown", inputs=self.inputs)
        if self.junit is not None and self.junit.resolve() == self.markdown.resolve():
            raise InvalidInputError(
                f"--junit and --markdown would both write {self.markdown}; give each a file of its "
                "own."
            )
