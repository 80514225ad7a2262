"""A report as Markdown: tables, facts and texts, no charts. No name breaks out of its cell."""

import re
from collections.abc import Iterator, Sequence

from flower_split.reporting.figures import in_bytes, in_seconds
from flower_split.reporting.report.content import headline, report_sections, state
from flower_split.reporting.report.sections import (
    Bars,
    Facts,
    Lines,
    Part,
    Prose,
    Section,
    Table,
    Tiles,
    Verbatim,
)
from flower_split.reporting.result import RunResult

_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&])")


def report_markdown(result: RunResult) -> str:
    """The report of `result` as Markdown."""
    title = f"# {escaped(headline(result))}\n\nState: {escaped(state(result))}\n"
    return title + to_markdown(report_sections(result))


def to_markdown(sections: Sequence[Section], *, level: int = 2) -> str:
    """The sections with headings of `level`."""
    return "".join(
        f"\n{'#' * level} {escaped(section.title)}\n" + "".join(map(_part, section.parts))
        for section in sections
        if not all(isinstance(part, Lines) for part in section.parts)
    )


def escaped(text: object) -> str:
    """A text on one line in which nothing is a mark of Markdown or HTML."""
    line = "".join(" " if ord(c) < 32 else c for c in str(text))
    return _MARKS.sub(r"\\\1", line)


def _part(part: Part) -> str:
    text = "\n".join(_lines(part))
    return f"\n{text}\n" if text else ""


def _lines(part: Part) -> Iterator[str]:
    match part:
        case Prose():
            yield escaped(part.text)
        case Facts():
            if part.folded:
                yield f"**{escaped(part.folded)}**\n"
            yield from (f"- {escaped(name)}: {escaped(told)}" for name, told in part.rows.items())
        case Tiles():
            for name, figure, more in part.rows:
                yield f"- {escaped(name)}: {escaped(figure)}{f' ({escaped(more)})' * bool(more)}"
        case Verbatim():
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", part.text)), default=0))
            if part.title:
                yield f"{escaped(part.title)}:\n"
            yield f"{fence}{part.language}\n{part.text.rstrip()}\n{fence}"
        case Table():
            yield from _table(part.head, part.rows)
        case Bars():
            shown = in_bytes if part.unit == "bytes" else in_seconds
            names = list(dict.fromkeys(name for held in part.rows.values() for name in held))
            rows = [
                [silo, *(shown(held[name]) if name in held else "" for name in names)]
                for silo, held in part.rows.items()
            ]
            yield f"{escaped(part.title)}:\n"
            yield from _table(["silo", *names], rows)
        case Lines():
            pass


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(escaped, head))} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(escaped, row))} |"
