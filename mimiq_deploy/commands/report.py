"""``mimiq-deploy report``: one HTML page about one run or several."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Write one HTML page about one run or several")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The HTML file; without it report.html in the RUN. Needed for several runs.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="The pictures that were validated: shows those that the models disagree on. "
    "Without it no photograph is in the page.",
)
def report(runs: tuple[Path, ...], output: Path | None, data: Path | None) -> None:
    """Write one HTML page about each RUN: images, attention, losses, errors, parity, speed.

    The page is one file that loads nothing. Where torch is installed, attention maps and the error
    of each layer are measured and kept in the run; several runs are compared by a Pareto plot.
    """
    from mimiq_deploy.reporting import report_runs
    from mimiq_runtime.run_directory import RunDirectory

    path = report_runs([RunDirectory.open(run) for run in runs], output, data=data)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
