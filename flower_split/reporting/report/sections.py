"""What a report is made of, before it is HTML or Markdown. All texts are as they are, unescaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells; the first cell of a row names it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is so, by what it is about."""

    rows: Mapping[str, str]
    folded: str = ""
    """Title of a page's part that is opened to see them; empty where they are always seen."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """A few figures that are seen first: a name, the figure, and what it was before or is of."""

    rows: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, kw_only=True)
class Prose:
    """A paragraph."""

    text: str
    bad: bool = False
    """Whether it tells of something that went wrong."""


@dataclass(frozen=True, kw_only=True)
class Verbatim:
    """Text or code as it is written, with its line breaks."""

    text: str
    title: str = ""
    language: str = ""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """A line chart: by silo, its points (round, value), solid or, of the baseline, dashed."""

    title: str
    unit: str
    series: Mapping[str, Sequence[tuple[int, float]]]
    dashed: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    along: str = "round"
    """What the numbers of points count."""
    each: str = "silo"
    """What a line is of; empty where its name says so."""
    within: tuple[float, float] | None = None
    """Values that the axis has at least; None for those of the points alone."""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A bar for each silo, made of parts by name, in one unit."""

    title: str
    unit: str
    """`seconds` or `bytes`."""
    rows: Mapping[str, Mapping[str, float]]


Part: TypeAlias = Table | Facts | Tiles | Prose | Verbatim | Lines | Bars


@dataclass(frozen=True, kw_only=True)
class Section:
    """A headed part of a report; one without parts is left out."""

    title: str
    parts: Sequence[Part]
