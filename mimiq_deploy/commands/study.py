"""``mimiq-deploy study``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimiq_deploy.commands.model_options import ModelChoices, model_options
from mimiq_deploy.commands.options import (
    SEED,
    check_partner,
    json_option,
    output_console,
    print_json,
)

if TYPE_CHECKING:
    from mimiq_deploy.study.report import StudyReport

CELL_FAILED = 1
"""Exit code when a cell failed."""

PLOT = "study.png"


def _check_sources(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    from mimiq_deploy.study.grid import FOLDER, known_sources

    known = known_sources()
    without_folder = tuple(source for source in known if source != FOLDER)
    return _known_ones(value, known) or without_folder


def _check_fine_tunings(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    from mimiq_deploy.study.grid import known_fine_tunings

    known = known_fine_tunings()
    return _known_ones(value, known) or tuple(known)


def _known_ones(names: tuple[str, ...], known: list[str]) -> tuple[str, ...]:
    # Not a click.Choice: the names would be imported for --help.
    for name in names:
        if name not in known:
            raise click.BadParameter(f"expected one of {', '.join(known)}; got {name!r}.")
    return tuple(dict.fromkeys(names))


@click.command(short_help="Measure what each choice of the method is worth, in one table")
@click.argument("model", metavar="MODEL")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the study; what is finished there is kept.",
)
@model_options
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="NAME",
    callback=_check_sources,
    help="Source of images; repeatable. Without it all but folder.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Pictures for the source folder, the yardstick: adds that source.",
)
@click.option(
    "--fine-tuning",
    "fine_tunings",
    multiple=True,
    metavar="NAME",
    callback=_check_fine_tunings,
    help="How models are trained; repeatable. Without it every way there is.",
)
@click.option(
    "--bits",
    multiple=True,
    default=("w4a4",),
    show_default=True,
    metavar="wXaY",
    help="Bits of weights and activations; repeatable.",
)
@click.option(
    "--seeds", default=1, show_default=True, type=click.IntRange(min=1), help="Repetitions."
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="The first.")
@click.option(
    "--ablations",
    is_flag=True,
    help="Also take away each loss of the method: head similarity, attention structure.",
)
@click.option("--recipe", default="quick", show_default=True, metavar="NAME|FILE")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="One setting of the recipe for all cells; repeatable.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Labelled pictures: one folder a class, or a folder with labels.csv (file,label). "
    "Without it agreement with full precision on unseen synthetic images is measured.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Use at most this many pictures.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--device", default="cpu", show_default=True, help="torch's name of the device.")
@json_option
@click.pass_context
def study(
    context: click.Context,
    model: str,
    output: Path,
    choices: ModelChoices,
    sources: tuple[str, ...],
    folder: Path | None,
    fine_tunings: tuple[str, ...],
    bits: tuple[str, ...],
    seeds: int,
    seed: int,
    ablations: bool,
    recipe: str,
    settings: tuple[str, ...],
    data: Path | None,
    limit: int | None,
    batch_size: int,
    device: str,
    as_json: bool,
) -> None:
    """Calibrate MODEL in all combinations of the choices, and measure each on the same images.

    Every combination is a run directory in the study's folder. Writes study.json, study.md and
    study.png; exits with 1 when a combination failed.
    """
    from mimiq_deploy.study.grid import FOLDER, StudyGrid
    from mimiq_deploy.study.plot import plot_study
    from mimiq_deploy.study.run_study import StudyRequest, run_study
    from mimiq_runtime.errors import MissingDependencyError

    check_partner(context, "--data", "limit", "batch_size", present=data is not None)
    if folder is not None and FOLDER not in sources:
        sources = (*sources, FOLDER)
    grid = StudyGrid(
        bits=tuple(dict.fromkeys(width.lower() for width in bits)),
        sources=sources,
        fine_tunings=fine_tunings,
        seeds=tuple(range(seed, seed + seeds)),
        ablations=ablations,
        folder=folder,
        recipe=recipe,
        settings=settings,
    )
    request = StudyRequest(
        calibration=choices.request(
            model, grid.recipe_of(grid.cells()[0]), seed=seed, device=device
        ),
        grid=grid,
        pictures=data,
        limit=limit,
        batch_size=batch_size,
    )
    report = run_study(request, output, say=lambda sentence: click.echo(sentence, err=True))
    try:
        plot_study(report, output / PLOT)
    except MissingDependencyError as error:
        click.echo(f"No plot: {error}", err=True)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _print(report, output)
    if any(cell.failure for cell in report.cells):
        context.exit(CELL_FAILED)


def _print(report: StudyReport, output: Path) -> None:
    from rich.table import Table

    from mimiq_deploy.study.markdown import points, signed
    from mimiq_deploy.study.report import name_of_choice

    yardstick = report.yardstick
    table = Table(
        "bits",
        "images",
        "fine-tuning",
        f"{yardstick.score} %",
        "head similarity",
        "seeds",
        title=f"{report.model}: {yardstick.score} on {yardstick.images} images "
        f"({yardstick.origin}), full precision {points(yardstick.full_precision)}",
    )
    for row in report.rows:
        table.add_row(
            row.bits,
            name_of_choice(row.source, row.without),
            row.fine_tuning,
            points(row.score, row.spread),
            f"{row.head_similarity:.3f}",
            str(row.seeds),
        )
    console = output_console()
    console.print(table)
    for gain in report.comparisons:
        console.print(
            f"{gain.bits} {gain.fine_tuning}: mimiq against {gain.other} "
            f"{points(gain.gain, gain.spread, signed=True)} points, "
            f"better in {gain.better} of {gain.seeds} seeds"
        )
    for link in report.correlations:
        console.print(
            f"{link.bits} {link.fine_tuning}: rank correlation of head similarity and "
            f"{yardstick.score} {signed(link.spearman)} (squared {signed(link.spearman_squared)}) "
            f"over {link.cells} cells"
        )
    for cell in report.cells:
        if cell.failure:
            console.print(f"{cell.run} failed: {cell.failure}")
    console.print(f"Written: {output}/study.json, study.md, and {PLOT} where matplotlib is.")
