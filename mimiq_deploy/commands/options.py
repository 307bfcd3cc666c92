"""Options that several commands share, and the two ways in which they print."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = [
    "SEED",
    "check_partner",
    "engine_option",
    "engines_option",
    "gates_option",
    "json_option",
    "labels_option",
    "output_console",
    "print_json",
    "read_labels",
    "run_argument",
    "was_typed",
]

SEED = click.IntRange(0, 2**62)
"""What every library takes as a seed, with room for the seeds that follow it."""

_WIDTH_OF_A_FILE = 120


def was_typed(context: click.Context, name: str) -> bool:
    """Whether the command line gives a parameter, also where it says what the default is."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def check_partner(
    context: click.Context, partner: str, *names: str, present: bool, without: bool = False
) -> None:
    """Refuse options that nothing would look at; whoever typed one expects that it counts.

    Args:
        context: Of the command.
        partner: The option that decides on the others, such as ``--triton``.
        names: The parameters of the others.
        present: Whether the partner was given.
        without: Whether the others count without the partner, instead of with it.

    Raises:
        InvalidInputError: One of the others was typed, and does not count.
    """
    from mimiq_runtime.errors import InvalidInputError

    typed = [f"--{name.replace('_', '-')}" for name in names if was_typed(context, name)]
    if typed and present == without:
        verb = "counts" if len(typed) == 1 else "count"
        remedy = "leave one of the two out" if without else f"give {partner}, too"
        raise InvalidInputError(
            f"{' and '.join(typed)} {verb} only {'without' if without else 'with'} {partner}; "
            f"{remedy}."
        )


def _check_engines(
    context: click.Context, parameter: click.Parameter, value: str | tuple[str, ...]
) -> str | tuple[str, ...]:
    # Not a click.Choice: the names would be imported for --help.
    from mimiq_runtime.session import known_engines

    known = known_engines()
    for name in (value,) if isinstance(value, str) else value:
        if name not in known:
            raise click.BadParameter(f"expected one of {', '.join(known)}; got {name!r}.")
    return value


run_argument = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
"""The run directory; the parameter ``run``, a :class:`~pathlib.Path`."""

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on standard output instead of tables."
)
"""``--json``; the parameter ``as_json``."""

engine_option = click.option(
    "--engine",
    default="ort-cpu",
    show_default=True,
    metavar="NAME",
    callback=_check_engines,
    help="What runs the model.",
)
"""``--engine NAME``; the parameter ``engine``, a known name."""

engines_option = click.option(
    "--engine",
    "engines",
    multiple=True,
    default=("ort-cpu",),
    show_default=True,
    metavar="NAME",
    callback=_check_engines,
    help="What runs the model; may be given more than once.",
)
"""``--engine NAME``, repeatable; the parameter ``engines``, a tuple of known names."""

labels_option = click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Text file with the name of each class, one a line.",
)
"""``--labels FILE``; the parameter ``labels``, a :class:`~pathlib.Path` or None."""


def read_labels(path: Path) -> list[str]:
    """The names of the classes in a text file, one a line.

    Raises:
        InvalidInputError: The file cannot be read as text.
    """
    from mimiq_runtime.bounded_file import read_text
    from mimiq_runtime.errors import InvalidInputError

    try:
        return read_text(path).splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(
            f"The labels {path} cannot be read as text: {reason}; give one name a line."
        ) from error


gates_option = click.option(
    "--gates",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Gates in a YAML file; what the command line says goes before.",
)
"""``--gates FILE``; the parameter ``gates``, a path or None."""


def print_json(value: Any) -> None:
    """Print indented JSON on standard output.

    Raises:
        ValueError: The value holds NaN or infinity, which JSON cannot say.
    """
    from mimiq_runtime.printable import printable

    click.echo(printable(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)))


def output_console() -> Console:
    """Where tables are printed: standard output, as text that is taken literally.

    No markup is in it, and what a terminal would obey is written as an escape.

    Into a file or a pipe they are 120 columns wide unless ``COLUMNS`` says otherwise.
    """
    from rich.console import Console

    from mimiq_runtime.printable import printable

    class LiteralConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)

    fixed = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return LiteralConsole(
        markup=False, highlight=False, emoji=False, width=_WIDTH_OF_A_FILE if fixed else None
    )
