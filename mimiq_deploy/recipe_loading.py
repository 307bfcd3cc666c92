"""From a recipe's name or file, bit widths and single settings to a validated recipe."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mimiq_runtime.errors import InvalidInputError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mimiq_calib.recipe import Recipe

__all__ = ["load_recipe", "overrides_of", "parse_bits", "parse_setting", "shipped_recipes"]

LARGEST_FILE = 64 * 1024
"""A recipe has a few dozen lines; anything larger is a mistake or an attack."""

# PyYAML has no errors of its own for what it reads as dates, numbers or explicit types.
_YAML_ERRORS = (yaml.YAMLError, AttributeError, LookupError, RecursionError, ValueError)


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


def parse_setting(text: str) -> tuple[list[str], Any]:
    """Key path and value of ``distillation.epochs=3``; the value is read as YAML.

    Raises:
        InvalidInputError: There is no ``=``, no key, or the value is not YAML.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise InvalidInputError(f"A setting is written like distillation.epochs=3; got {text!r}.")
    try:
        parsed = yaml.load(value, Loader=_StrictLoader)  # a SafeLoader, and stricter
    except _YAML_ERRORS as error:
        raise InvalidInputError(f"The value of the setting {text!r} is not YAML.") from error
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
        RecipeError: All faults of the recipe at once.
        InvalidInputError: The bits or a setting are not written as they should be.
    """
    from pydantic import ValidationError

    from mimiq_calib.recipe import Recipe
    from mimiq_runtime.schema import describe_faults

    content = _read(name_or_path)
    if bits is not None:
        weight, activation = parse_bits(bits)
        _set(content, ["quantization", "weight_bits"], weight)
        _set(content, ["quantization", "activation_bits"], activation)
    for setting in settings:
        path, value = parse_setting(setting)
        _set(content, path, value)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(name_or_path, describe_faults(error)) from error


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases (they can grow without bound) and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not accepted in a recipe")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {str(key) for key in keys if keys.count(key) > 1}
        if repeated:
            raise yaml.YAMLError(f"the key {', '.join(sorted(repeated))} is there more than once")
        return super().construct_mapping(node, deep)


def _read(name_or_path: str) -> dict[str, Any]:
    if name_or_path in shipped_recipes():
        shipped = resources.files("mimiq_deploy") / "recipes" / f"{name_or_path}.yaml"
        text = shipped.read_text(encoding="utf-8")
    else:
        text = _read_file(Path(name_or_path))
    try:
        content = yaml.load(text, Loader=_StrictLoader)  # a SafeLoader, and stricter
    except _YAML_ERRORS as error:
        reason = " ".join(str(error).split())
        raise RecipeError(name_or_path, [f"not a YAML file that can be used: {reason}"]) from error
    if not isinstance(content, dict):
        raise RecipeError(name_or_path, ["expected keys such as quantization and synthesis"])
    return content


def _read_file(path: Path) -> str:
    if not path.is_file():
        raise InvalidInputError(
            f"There is no recipe {str(path)!r}: it must be a YAML file or one of "
            f"{', '.join(shipped_recipes())}."
        )
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise RecipeError(str(path), [f"the file is larger than {LARGEST_FILE} bytes"])
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), [f"the file cannot be read as text: {error}"]) from error


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


def overrides_of(settings: Sequence[str]) -> Mapping[str, Any]:
    """Settings without sections, such as ``img_size=32``, as a mapping.

    Raises:
        InvalidInputError: A setting is not written as it should be.
    """
    return {".".join(path): value for path, value in map(parse_setting, settings)}
