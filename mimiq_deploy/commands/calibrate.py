"""``mimiq-deploy calibrate``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimiq_deploy.commands.model_options import ModelChoices, model_options
from mimiq_deploy.commands.options import SEED, json_option, output_console, print_json

if TYPE_CHECKING:
    from mimiq_runtime.event_log import Event


@click.command(short_help="Quantize a model without any of its training data")
@click.argument("model", metavar="MODEL")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Run directory to make; new or empty.",
)
@model_options
@click.option(
    "--recipe",
    default="quick",
    show_default=True,
    metavar="NAME|FILE",
    help="quick, balanced, paper, demo, or a YAML file.",
)
@click.option("--bits", metavar="wXaY", help="Bits of weights and activations, such as w4a4.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="One setting of the recipe, such as distillation.epochs=3, fine_tuning=reconstruct, "
    "preset=faithful or 'quantization.layer_bits={\"*.fc2\": a8}'; repeatable.",
)
@click.option("--device", default="cpu", show_default=True, help="torch's name of the device.")
@click.option("--seed", default=0, show_default=True, type=SEED)
@click.option("--resume", is_flag=True, help="Continue the run in the directory where it stopped.")
@json_option
@click.pass_context
def calibrate(
    context: click.Context,
    /,
    model: str,
    output: Path,
    choices: ModelChoices,
    recipe: str,
    bits: str | None,
    settings: tuple[str, ...],
    device: str,
    seed: int,
    resume: bool,
    as_json: bool,
) -> None:
    """Quantize the timm model MODEL without any of its training data.

    Makes calibration images from the weights alone, learns the scales, trains the accuracy back,
    estimates what was lost, and writes the run directory that all other commands read.
    """
    from mimiq_deploy.cli import KEPT

    # Before the libraries are loaded, which is when somebody sees a slip and ends it.
    context.meta[KEPT] = lambda: _is_run(output)
    from mimiq_deploy.calibration import calibrate as run_calibration
    from mimiq_deploy.estimation import describe_block_errors, describe_estimate
    from mimiq_deploy.recipe_loading import load_recipe
    from mimiq_runtime.estimate import read_estimate
    from mimiq_runtime.event_log import EventKind, read_events

    begun = datetime.now(UTC)
    chosen = load_recipe(recipe, bits=bits, settings=settings)
    request = choices.request(model, chosen, seed=seed, device=device)
    run = run_calibration(request, output, resume=resume)
    cost = read_estimate(run)
    events = read_events(output)
    skipped = [
        event
        for event in events
        if event.event is EventKind.SKIPPED and datetime.fromisoformat(event.time) >= begun
    ]
    ends = {
        event.stage: event
        for event in events
        if event.stage in run.manifest.stages and event.event is EventKind.FINISHED
    }
    summary = {
        "run": str(output),
        "model": run.manifest.model.name,
        "bits": run.manifest.bits,
        "recipe": run.manifest.recipe["name"],
        "stages": {
            name: stage.model_dump(mode="json") for name, stage in run.manifest.stages.items()
        },
        "skipped": [event.model_dump(include={"stage", "piece", "of"}) for event in skipped],
        "peak_memory": {
            name: event.model_dump(include={"peak_rss_mib", "peak_cuda_mib"})
            for name, event in ends.items()
        },
        "estimate": None if cost is None else cost.model_dump(mode="json"),
    }
    if as_json:
        print_json(summary)
        return
    console = output_console()
    if skipped:
        console.print(f"Done before, and skipped: {', '.join(map(describe_skipped, skipped))}.")
    console.print(f"{run.manifest.model.name} calibrated at {run.manifest.bits} in {output}")
    for name, stage in run.manifest.stages.items():
        facts = [f"{key} {value:.4g}" for key, value in stage.details.items()]
        memory = [f"at most {ends[name].memory}"] if name in ends else []
        console.print(f"  {name:<14} {stage.seconds:8.1f} s  {', '.join([*memory, *facts])}")
    if cost is not None:
        console.print(f"Estimate without data: {describe_estimate(cost, run.manifest.bits)}.")
        console.print(f"SQNR behind each block, dB: {describe_block_errors(cost)}.")
    console.print(f"Next: mimiq-deploy export {output} --target ort-cpu")


def _is_run(directory: Path) -> bool:
    from mimiq_runtime.run_directory import RunDirectory

    return (directory / RunDirectory.MANIFEST).exists()


def describe_skipped(event: Event) -> str:
    """What an earlier process had done: ``synthesis``, or ``distillation (3 of 8)``."""
    return (
        f"{event.stage}"
        if event.piece is None
        else f"{event.stage} ({event.piece + 1} of {event.of})"
    )
