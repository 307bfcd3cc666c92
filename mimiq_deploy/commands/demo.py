"""``mimiq-deploy demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimiq_deploy.commands.options import json_option, output_console, print_json

if TYPE_CHECKING:
    from mimiq_deploy.demo.story import DemoReport


@click.command(short_help="Tell the whole story on built-in real data")
@click.option(
    "-o",
    "--output",
    default=Path("demo-run"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for the run directories; what is finished there is kept.",
)
@json_option
def demo(output: Path, as_json: bool) -> None:
    """Quantize a small model of handwritten digits to 4 bits, without data, and measure it.

    The model and the digits are built in; nothing is downloaded.
    """
    from mimiq_deploy.demo.story import tell_story

    report = tell_story(output, say=lambda sentence: click.echo(sentence, err=True))
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _print(report, output)


def _print(report: DemoReport, output: Path) -> None:
    from rich.table import Table

    batch_sizes = list(report.rows[0].times_as_fast)
    table = Table(
        "model",
        "top-1 %",
        "same answer as FP32 %",
        "ONNX MB",
        "ms an image",
        *(f"times as fast, batch {size}" for size in batch_sizes),
        title=f"{report.pictures} held-out handwritten digits",
    )
    for row in report.rows:
        table.add_row(
            row.model,
            f"{100 * row.top1:.2f}",
            f"{100 * row.agreement:.2f}",
            _number(row.megabytes),
            _number(row.latency_ms),
            *(_number(row.times_as_fast.get(size)) for size in batch_sizes),
        )
    console = output_console()
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in report.machine.items()))
    run = output / "mimiq-w4a4"
    console.print(f"The runs are in {output}. Next: mimiq-deploy inspect {run}, and look at")
    console.print(f"{run}/images/preview.png: what the model was calibrated on.")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
