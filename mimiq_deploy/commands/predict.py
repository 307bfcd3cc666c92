"""``mimiq-deploy predict``: classify pictures with the exported model of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimiq_deploy.commands.options import (
    engine_option,
    json_option,
    output_console,
    print_json,
    run_argument,
)

if TYPE_CHECKING:
    from mimiq_deploy.prediction import ImagePrediction

__all__ = ["predict"]


@click.command(short_help="Classify pictures with a run's exported model")
@run_argument
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@engine_option
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How many classes to name for each picture.",
)
@json_option
def predict(run: Path, images: tuple[Path, ...], engine: str, top: int, as_json: bool) -> None:
    """Classify pictures with a run's exported model.

    Prints the most probable classes of each IMAGE with their probabilities. The model is
    export/ENGINE/model.onnx of the RUN, which `mimiq-deploy export RUN` writes; torch is not
    needed.
    """
    from mimiq_deploy.prediction import predict_files
    from mimiq_runtime.progress import progress_bar
    from mimiq_runtime.run_directory import RunDirectory

    opened = RunDirectory.open(run)
    with progress_bar("Classifying", len(images)) as advance:
        predictions = predict_files(
            opened, images, engine=engine, top=top, advance=lambda steps: advance(steps, "")
        )
    if as_json:
        print_json(
            {
                "run": str(run),
                "engine": engine,
                "predictions": [prediction.model_dump(mode="json") for prediction in predictions],
            }
        )
    else:
        _print_table(predictions)


def _print_table(predictions: list[ImagePrediction]) -> None:
    from rich.table import Table

    table = Table("picture", "class", "probability")
    # A long path goes on in the next line: what was classified must not be cut off.
    table.columns[0].overflow = "fold"
    table.columns[-1].justify = "right"
    for prediction in predictions:
        for rank, scored in enumerate(prediction.top):
            name = scored.label if scored.label is not None else str(scored.index)
            picture = prediction.image if rank == 0 else ""
            table.add_row(picture, name, f"{scored.probability:.2%}")
        table.add_section()
    output_console().print(table)
