"""What a section of the report holds, as data; ``templates/`` says how it looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Cell",
    "DataTable",
    "Facts",
    "Figure",
    "Gallery",
    "MapRows",
    "MapStrip",
    "Note",
    "Part",
    "Picture",
    "Section",
    "Thumbnail",
    "Tile",
    "Verdict",
    "missing_section",
]


@dataclass(frozen=True)
class Verdict:
    """A word that is good or bad news; the page colours it, and the word alone says it, too."""

    text: str
    good: bool


Cell = str | Verdict


@dataclass(frozen=True)
class Tile:
    """A figure at the top of the page.

    Attributes:
        value: The figure with its unit.
        label: What it is.
        detail: What it rests on.
    """

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    rows: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class DataTable:
    """A table that scrolls within the page.

    Attributes:
        columns: Headings.
        rows: As many cells each.
        caption: What is in it.
        words: The first so many columns are words, the others numbers.
        folded: Whether the reader has to open it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    words: int = 1
    folded: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
        svg: Markup of :func:`mimiq_runtime.report.drawing.draw`.
        caption: What it shows, as text.
        wide: Whether it takes the width of the page; on a phone it scrolls.
    """

    svg: str
    caption: str
    wide: bool = False
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Picture:
    """A picture as wide as the page, its pixels within the page."""

    source: str
    alt: str
    caption: str
    pixelated: bool = False
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Thumbnail:
    """A small picture and two lines about it."""

    source: str
    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side."""

    thumbnails: Sequence[Thumbnail]
    caption: str
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class MapStrip:
    """The maps of one model for one image.

    Attributes:
        label: Which model.
        maps: Pictures, one a layer.
    """

    label: str
    maps: Sequence[str]


@dataclass(frozen=True)
class MapRows:
    """Attention maps: one image with the strips of both models, layer by layer.

    Attributes:
        layers: Headings of the maps.
        images: A picture and its strips.
        similarity: A word for each layer, below the maps.
        caption: What is in it.
    """

    layers: Sequence[str]
    images: Sequence[tuple[str, Sequence[MapStrip]]]
    similarity: Sequence[str]
    caption: str
    kind: ClassVar[str] = "maps"


@dataclass(frozen=True)
class Note:
    """A sentence between the other parts."""

    text: str
    warning: bool = False
    kind: ClassVar[str] = "note"


Part = Facts | DataTable | Figure | Picture | Gallery | MapRows | Note


@dataclass(frozen=True)
class Section:
    """One section of the report.

    Attributes:
        name: Its anchor.
        title: Its heading.
        intro: What the reader sees here, in a sentence or two.
        parts: What it holds, from top to bottom; empty where its source is missing.
        missing: Why there is nothing, in a sentence.
        command: What makes it; empty where ``missing`` says all.
    """

    name: str
    title: str
    intro: str = ""
    parts: Sequence[Part] = field(default=())
    missing: str = ""
    command: str = ""


def missing_section(name: str, title: str, why: str, command: str = "") -> Section:
    """A section without a source."""
    return Section(name=name, title=title, missing=why, command=command)
