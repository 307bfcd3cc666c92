"""From a recipe's name or file, bit widths and single settings to a validated recipe."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimiq_deploy.strict_yaml import YAML_ERRORS, parse_yaml, read_small_file
from mimiq_runtime.errors import InvalidInputError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mimiq_calib.recipe import Recipe

__all__ = ["load_recipe", "overrides_of", "parse_bits", "parse_setting", "shipped_recipes"]


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the program."""
    folder = resources.files("mimiq_deploy") / "recipes"
    return sorted(
        item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")
    )


def parse_bits(text: str) -> tuple[int, int]:
    """Weight and activation bits of the notation ``w4a8``.

    Raises:
        InvalidInputError: The text is of another form, or a width is not 2 to 8.
    """
    match = re.fullmatch(r"w([2-8])a([2-8])", text.lower())
    if match is None:
        raise InvalidInputError(
            f"Bit widths are written like w4a8, each from 2 to 8; got {text!r}."
        )
    weight, activation = match.groups()
    return int(weight), int(activation)


def parse_setting(
    text: str, *, option: str = "--set", example: str = "distillation.epochs=3"
) -> tuple[list[str], Any]:
    """Key path and value of ``distillation.epochs=3``; the value is read as YAML.

    Args:
        text: What was typed.
        option: The option that it was typed behind, for the message.
        example: What could stand there, for the message.

    Raises:
        InvalidInputError: There is no ``=``, no key, or the value is not YAML.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise InvalidInputError(f"{option} is written like {example}; got {text!r}.")
    try:
        parsed = parse_yaml(value)
    except YAML_ERRORS as error:
        raise InvalidInputError(f"The value of {option} {text!r} is not YAML.") from error
    return key.strip().split("."), parsed


def load_recipe(
    name_or_path: str, *, bits: str | None = None, settings: Sequence[str] = ()
) -> Recipe:
    """Read a recipe, apply bit widths and single settings, and validate the whole.

    Args:
        name_or_path: A shipped recipe's name, or a YAML file.
        bits: Such as ``w4a4``; overrides the recipe.
        settings: Such as ``distillation.epochs=3``; applied last, in order.

    Raises:
        RecipeError: All faults of the recipe, and of how the settings are written, at once.
        InvalidInputError: The bits or settings alone are not written as they should be.
    """
    from pydantic import ValidationError

    from mimiq_calib.recipe import Recipe
    from mimiq_runtime.schema import describe_faults

    content = _read(name_or_path)
    if bits is not None:
        weight, activation = parse_bits(bits)
        _set(content, ["quantization", "weight_bits"], weight)
        _set(content, ["quantization", "activation_bits"], activation)
    slips = []
    for setting in settings:
        try:
            _set(content, *parse_setting(setting))
        except InvalidInputError as error:
            slips.append(str(error))
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        faults = [*(slip.removesuffix(".") for slip in slips), *describe_faults(error)]
        raise RecipeError(name_or_path, faults) from error
    if slips:
        raise InvalidInputError(" ".join(slips))
    return recipe


def _read(name_or_path: str) -> dict[str, Any]:
    if name_or_path in shipped_recipes():
        shipped = resources.files("mimiq_deploy") / "recipes" / f"{name_or_path}.yaml"
        text = shipped.read_text(encoding="utf-8")
    else:
        text = _read_file(Path(name_or_path))
    try:
        content = parse_yaml(text)
    except YAML_ERRORS as error:
        reason = " ".join(str(error).split())
        raise RecipeError(name_or_path, [f"not a YAML file that can be used: {reason}"]) from error
    if not isinstance(content, dict):
        raise RecipeError(name_or_path, ["expected keys such as quantization and synthesis"])
    return content


def _read_file(path: Path) -> str:
    if not os.path.exists(path) or path.is_dir():
        raise InvalidInputError(
            f"There is no recipe {str(path)[:200]!r}: it must be a YAML file or one of "
            f"{', '.join(shipped_recipes())}."
        )
    try:
        return read_small_file(path)
    except ValueError as error:
        raise RecipeError(str(path), [str(error)]) from error


def _set(content: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a nested key; sections that are not there yet are made, and validated later."""
    *sections, key = path
    place: Any = content
    for depth, section in enumerate(sections):
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise InvalidInputError(
                f"The setting {'.'.join(path)} cannot be made: "
                f"{'.'.join(path[: depth + 1])} is not a section of the recipe."
            )
    place[key] = value


def overrides_of(settings: Sequence[str], *, option: str, example: str) -> Mapping[str, Any]:
    """Settings without sections, such as ``img_size=32``, as a mapping.

    Args:
        settings: What was typed.
        option: The option that they were typed behind, for the message.
        example: What could stand there, for the message.

    Raises:
        InvalidInputError: Settings are not written as they should be; all of them at once.
    """
    overrides, slips = {}, []
    for setting in settings:
        try:
            path, value = parse_setting(setting, option=option, example=example)
            overrides[".".join(path)] = value
        except InvalidInputError as error:
            slips.append(str(error))
    if slips:
        raise InvalidInputError(" ".join(slips))
    return overrides
