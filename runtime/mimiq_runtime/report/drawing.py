"""Figures as SVG within the page: they take the page's colours, so that both themes can show them.

matplotlib draws with a few fixed colours; in the SVG each becomes ``currentColor`` or a variable of
the style sheet. Text stays text, in the page's font. The markup is parsed and written anew, so
that nothing but shapes and text is left of it: no metadata, no style sheet, no address.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from mimiq_runtime.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "FAINT",
    "INK",
    "SERIES",
    "STANDARD",
    "WIDE",
    "draw",
    "logarithmic",
    "needs_matplotlib",
]

INK, FAINT, _GRID = "#111213", "#707172", "#d0d1d2"

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that stay apart for colour-blind eyes (Okabe and Ito); lighter in the dark theme."""

_VARIABLES = {INK: "currentColor", FAINT: "var(--faint)", _GRID: "var(--grid)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)
}

STANDARD, WIDE = (5.6, 3.3), (10.5, 3.4)
"""Inches; 72 units of the SVG each."""

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mimiq-deploy",  # the same figure is the same text
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 11,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 2,
    "lines.markersize": 5,
}

_FONT = re.compile(r"font:[^;]*?([0-9.]+)px[^;]*")
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")


def needs_matplotlib() -> None:
    """Raise :class:`MissingDependencyError` where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError("matplotlib", extra="report") from error


def draw(
    name: str,
    label: str,
    paint: Callable[[Any], None],
    *,
    size: tuple[float, float] = STANDARD,
) -> str:
    """Draw one figure.

    Args:
        name: Unique in the page; identifiers in the SVG begin with it.
        label: What is to be seen, for those who do not see it.
        paint: Gets matplotlib's axes. It uses :data:`INK`, :data:`FAINT` and :data:`SERIES` only.
        size: Width and height in inches.

    Returns:
        An ``<svg>`` element for an HTML page.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    needs_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The page's font is used, whatever matplotlib's own lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        paint(axes)
        figure.savefig(stream, format="svg", transparent=True)
    return _for_a_page(stream.getvalue(), name, label)


def logarithmic(axes: Any) -> None:
    """Make the y axis logarithmic, its ticks written as plain numbers.

    matplotlib writes powers as formulas, and formulas are switched off.
    """
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def _for_a_page(svg: str, name: str, label: str) -> str:
    root = ElementTree.fromstring(svg)
    _drop(root, {"metadata", "style"})
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({key: _value(key, text, name) for key, text in attributes.items()})
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _drop(root: ElementTree.Element, tags: set[str]) -> None:
    for parent in root.iter():
        for child in [child for child in parent if _local(child.tag) in tags]:
            parent.remove(child)


def _value(key: str, text: str, name: str) -> str:
    if key == "id":
        return f"{name}-{text}"
    if key == "href":
        return f"#{name}-{text.removeprefix('#')}"
    text = _REFERENCE.sub(rf"url(#{name}-\1)", text)
    if key == "style":
        text = _FONT.sub(r"font-size: \1px", text)
    return _COLOUR.sub(lambda found: _VARIABLES.get(found[0], found[0]), text)


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
