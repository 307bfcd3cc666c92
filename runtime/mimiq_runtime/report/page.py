"""The page: all sections of all runs in one file that needs nothing beside it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from mimiq_runtime.atomic import write_text
from mimiq_runtime.errors import InvalidInputError, MimiqDeployError, MissingDependencyError
from mimiq_runtime.printable import one_sentence
from mimiq_runtime.report.attention import attention_section
from mimiq_runtime.report.disagreements import disagreements_section
from mimiq_runtime.report.drawing import needs_matplotlib
from mimiq_runtime.report.estimate_section import estimate_section
from mimiq_runtime.report.layer_error_section import layer_error_section
from mimiq_runtime.report.overview import key_figures, model_section
from mimiq_runtime.report.pareto import pareto_section
from mimiq_runtime.report.parity_section import parity_section
from mimiq_runtime.report.section import Section, missing_section
from mimiq_runtime.report.speed import speed_section
from mimiq_runtime.report.synthetic_images import images_section
from mimiq_runtime.report.training import head_similarity_section, losses_section

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jinja2 import Environment

    from mimiq_runtime.report.section import Tile
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["RunPage", "check_libraries", "is_report", "render_page", "write_page"]

TEMPLATES = Path(__file__).parent / "templates"

_TITLE = b"<title>mimiq-deploy report: "
_BEGINNING = 4096
"""Bytes; a page has its title among the first of them."""


@dataclass(frozen=True)
class RunPage:
    """One run as the template gets it.

    Attributes:
        name: What the page calls it; unique in the page.
        anchor: What the anchors of its sections begin with.
        model: Name of the model.
        bits: Bit widths.
        tiles: The figures at the top.
        sections: All sections, also those without a source.
    """

    name: str
    anchor: str
    model: str
    bits: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]


_ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What drawing raises where numbers are none."""


def check_libraries() -> None:
    """Make sure, before any work, that the page can be made.

    Raises:
        MissingDependencyError: matplotlib or jinja2 is not installed.
    """
    needs_matplotlib()
    _environment()


def write_page(
    runs: Sequence[RunDirectory],
    output: Path,
    *,
    data: Path | None = None,
    not_inside: Mapping[Path, str] | None = None,
) -> None:
    """Write the report of one run or several, atomically.

    Args:
        runs: The runs, in the order of the page.
        output: The HTML file.
        data: Folder of the pictures that were validated, for thumbnails of disagreements; None
            leaves all photographs out.
        not_inside: By the root of a run, why nothing could be measured inside its models.

    Raises:
        MissingDependencyError: matplotlib or jinja2 is not installed.
        InvalidInputError: No run was given, ``data`` is no folder, or the file cannot be written.
    """
    write_text(output, render_page(runs, data=data, not_inside=not_inside))


def is_report(path: Path) -> bool:
    """Whether a file is a page that this module wrote, by its beginning.

    Raises:
        InvalidInputError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _TITLE in file.read(_BEGINNING)
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read: {error.strerror or error}; choose another --output."
        ) from error


def render_page(
    runs: Sequence[RunDirectory],
    *,
    data: Path | None = None,
    not_inside: Mapping[Path, str] | None = None,
) -> str:
    """The report as HTML; arguments and errors are those of :func:`write_page`."""
    if not runs:
        raise InvalidInputError("Expected at least one run to report on; got none.")
    if data is not None and not data.is_dir():
        raise InvalidInputError(
            f"Expected the folder of the validated pictures, got {data}, which is no folder."
        )
    environment = _environment()
    names = _unique_names(runs)
    pages = [
        _run_page(name, f"run-{number}-", run, data, (not_inside or {}).get(run.root))
        for number, (name, run) in enumerate(zip(names, runs, strict=True), start=1)
    ]
    named = list(zip(names, runs, strict=True))
    comparison = (
        _guarded("pareto", "Runs side by side", lambda: pareto_section(named))
        if len(runs) > 1
        else missing_section(
            "pareto",
            "Runs side by side",
            "A comparison needs more than one run.",
            f"mimiq-deploy report {runs[0].root} OTHER_RUN -o report.html",
        )
    )
    return environment.get_template("page.html.j2").render(
        title=f"{pages[0].model}, {pages[0].bits}" if len(pages) == 1 else f"{len(pages)} runs",
        comparison=comparison,
        runs=pages,
        version=_version(),
    )


def _run_page(
    name: str, anchor: str, run: RunDirectory, data: Path | None, not_inside: str | None
) -> RunPage:
    makers: dict[tuple[str, str], Callable[[], Section]] = {
        ("model", "Model and recipe"): lambda: model_section(run),
        ("images", "Calibration images"): lambda: images_section(run),
        ("attention", "Attention maps"): lambda: attention_section(run, not_inside),
        ("head-similarity", "Head similarity"): lambda: head_similarity_section(run, anchor),
        ("losses", "Losses"): lambda: losses_section(run, anchor),
        ("layer-errors", "Error of each layer"): lambda: layer_error_section(
            run, anchor, not_inside
        ),
        ("estimate", "Estimate without data"): lambda: estimate_section(run, anchor),
        ("disagreements", "Disagreements"): lambda: disagreements_section(run, data),
        ("parity", "Parity and accuracy"): lambda: parity_section(run),
        ("speed", "Speed"): lambda: speed_section(run, anchor),
    }
    return RunPage(
        name=name,
        anchor=anchor,
        model=run.manifest.model.name,
        bits=_bits(run),
        tiles=_tiles(run),
        sections=[_guarded(*heading, make) for heading, make in makers.items()],
    )


def _guarded(name: str, title: str, make: Callable[[], Section]) -> Section:
    """A damaged file costs its own section, not the report."""
    try:
        return make()
    except MimiqDeployError as error:
        return missing_section(name, title, one_sentence(str(error)))
    # A file of the right digest may still say what nobody would: texts for losses, rows without
    # their keys. Whatever is made of that in drawing it is the file's.
    except _ODD as error:
        reason = one_sentence(f"{type(error).__name__}: {error}")
        return missing_section(
            name, title, f"What the run has recorded here cannot be shown ({reason})."
        )


def _tiles(run: RunDirectory) -> Sequence[Tile]:
    try:
        return key_figures(run)
    except (MimiqDeployError, *_ODD):
        return ()  # the section of the damaged file says so


def _bits(run: RunDirectory) -> str:
    try:
        return run.manifest.bits.upper()
    except (KeyError, TypeError):
        return "unknown bits"


def _unique_names(runs: Sequence[RunDirectory]) -> list[str]:
    """Names of the folders, with as much of the path as tells them apart."""
    paths = [run.root.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, start=1)]


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise MissingDependencyError("jinja2", extra="report") from error
    # Names of classes, files and runs come from users: all is escaped but the SVG, which is ours.
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _version() -> str:
    try:
        return version("mimiq-deploy")
    except PackageNotFoundError:
        return "unknown"
