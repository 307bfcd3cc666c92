"""``mimiq-deploy calibrate``."""

from __future__ import annotations

from pathlib import Path

import click

from mimiq_deploy.commands.options import json_option, output_console, print_json


@click.command(short_help="Quantize a model without any of its training data")
@click.argument("model", metavar="MODEL")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Run directory to make; new or empty.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Weights: .safetensors, or .pth/.pt read without running code. Without it timm loads "
    "its own pretrained weights.",
)
@click.option(
    "--recipe",
    default="quick",
    show_default=True,
    metavar="NAME|FILE",
    help="quick, balanced, paper, or a YAML file.",
)
@click.option("--bits", metavar="wXaY", help="Bits of weights and activations, such as w4a4.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="One setting of the recipe, such as distillation.epochs=3; repeatable.",
)
@click.option("--num-classes", type=click.IntRange(min=1), help="Length of the logits.")
@click.option(
    "--model-arg",
    "model_arguments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Argument of timm's constructor, such as img_size=32; repeatable.",
)
@click.option(
    "--preprocessing",
    multiple=True,
    metavar="KEY=VALUE",
    help="What differs from timm's data configuration, such as mean=[0.5,0.5,0.5]; repeatable.",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Text file with the name of each class, one a line.",
)
@click.option("--device", default="cpu", show_default=True, help="torch's name of the device.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--resume", is_flag=True, help="Continue the run in the directory where it stopped.")
@json_option
def calibrate(
    model: str,
    output: Path,
    checkpoint: Path | None,
    recipe: str,
    bits: str | None,
    settings: tuple[str, ...],
    num_classes: int | None,
    model_arguments: tuple[str, ...],
    preprocessing: tuple[str, ...],
    labels: Path | None,
    device: str,
    seed: int,
    resume: bool,
    as_json: bool,
) -> None:
    """Quantize the timm model MODEL without any of its training data.

    Makes calibration images from the weights alone, learns the scales, distils the accuracy
    back, and writes the run directory that all other commands read.
    """
    from mimiq_deploy.calibration import CalibrationRequest
    from mimiq_deploy.calibration import calibrate as run_calibration
    from mimiq_deploy.recipe_loading import load_recipe, overrides_of

    request = CalibrationRequest(
        model=model,
        recipe=load_recipe(recipe, bits=bits, settings=settings),
        checkpoint=checkpoint,
        num_classes=num_classes,
        model_arguments=overrides_of(model_arguments),
        preprocessing=overrides_of(preprocessing),
        labels=None if labels is None else _read_labels(labels),
        seed=seed,
        device=device,
    )
    run = run_calibration(request, output, resume=resume)
    summary = {
        "run": str(output),
        "model": run.manifest.model.name,
        "bits": run.manifest.bits,
        "recipe": run.manifest.recipe["name"],
        "stages": {
            name: stage.model_dump(mode="json") for name, stage in run.manifest.stages.items()
        },
    }
    if as_json:
        print_json(summary)
        return
    console = output_console()
    console.print(f"{run.manifest.model.name} calibrated at {run.manifest.bits} in {output}")
    for name, stage in run.manifest.stages.items():
        facts = ", ".join(f"{key} {value:.4g}" for key, value in stage.details.items())
        console.print(f"  {name:<13} {stage.seconds:8.1f} s  {facts}")
    console.print(f"Next: mimiq-deploy export {output} --target ort-cpu")


def _read_labels(path: Path) -> list[str]:
    from mimiq_runtime.errors import InvalidInputError

    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"The labels {path} cannot be read as text: {error}.") from error
