"""The options that say which model is calibrated, shared by the commands that calibrate."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mimiq_deploy.commands.options import labels_option, read_labels

if TYPE_CHECKING:
    from collections.abc import Callable

    from mimiq_calib.recipe import Recipe
    from mimiq_deploy.calibration import CalibrationRequest

__all__ = ["ModelChoices", "model_options"]


@dataclass(frozen=True)
class ModelChoices:
    """What the options say, as they were typed.

    Attributes:
        checkpoint: File with the weights, or None.
        num_classes: Length of the logits, or None.
        model_arguments: ``KEY=VALUE`` for timm's constructor.
        preprocessing: ``KEY=VALUE`` that differ from timm's data configuration.
        labels: Text file with the name of each class, or None.
    """

    checkpoint: Path | None
    num_classes: int | None
    model_arguments: tuple[str, ...]
    preprocessing: tuple[str, ...]
    labels: Path | None

    def request(self, model: str, recipe: Recipe, *, seed: int, device: str) -> CalibrationRequest:
        """The request to calibrate this model.

        Raises:
            InvalidInputError: An option is not written as it should be, or a file is unreadable.
        """
        from mimiq_deploy.calibration import CalibrationRequest
        from mimiq_deploy.recipe_loading import overrides_of

        return CalibrationRequest(
            model=model,
            recipe=recipe,
            checkpoint=self.checkpoint,
            num_classes=self.num_classes,
            model_arguments=overrides_of(
                self.model_arguments, option="--model-arg", example="img_size=32"
            ),
            preprocessing=overrides_of(
                self.preprocessing, option="--preprocessing", example="mean=[0.5,0.5,0.5]"
            ),
            labels=None if self.labels is None else read_labels(self.labels),
            seed=seed,
            device=device,
        )


_OPTIONS = (
    click.option(
        "--checkpoint",
        type=click.Path(path_type=Path),
        help="Weights: .safetensors, or .pth/.pt read without running code. Without it timm loads "
        "its own pretrained weights.",
    ),
    click.option("--num-classes", type=click.IntRange(min=1), help="Length of the logits."),
    click.option(
        "--model-arg",
        "model_arguments",
        multiple=True,
        metavar="KEY=VALUE",
        help="Argument of timm's constructor, such as img_size=32; repeatable.",
    ),
    click.option(
        "--preprocessing",
        multiple=True,
        metavar="KEY=VALUE",
        help="What differs from timm's data configuration, such as mean=[0.5,0.5,0.5]; repeatable.",
    ),
    labels_option,
)


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options; its parameter ``choices`` is a :class:`ModelChoices`."""

    @functools.wraps(command)
    def with_choices(**typed: Any) -> None:
        named = {name: typed.pop(name) for name in ModelChoices.__dataclass_fields__}
        command(choices=ModelChoices(**named), **typed)

    for option in reversed(_OPTIONS):
        option(with_choices)
    return with_choices
