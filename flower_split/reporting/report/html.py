"""A report as a page that needs nothing else: one file, no script, no address. All is escaped."""

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from flower_split.reporting.report.charts import bar_chart, line_chart
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

STYLE = "style.css"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


_NUMBER = re.compile(r"[-+x]?\d|-?$")


def report_page(result: RunResult) -> str:
    """The report of `result` as HTML."""
    body = "".join(map(to_html, report_sections(result)))
    word = state(result)
    title = f"Run: {headline(result)}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style()}</style></head><body><main>"
        f'<header><p class="kicker">flower_split</p><h1>{escape(headline(result))}</h1>'
        f'<p><span class="badge {escape(word)}">{escape(word)}</span></p></header>'
        f"{body}</main></body></html>\n"
    )


def style() -> str:
    """The style sheet of reports and of the live page."""
    return files("flower_split.reporting.report").joinpath(STYLE).read_text(encoding="utf-8")


def to_html(section: Section) -> str:
    """A section, empty where it has no parts."""
    if not section.parts:
        return ""
    return f"<section><h2>{escape(section.title)}</h2>{parts_html(section.parts)}</section>"


def parts_html(parts: Sequence[Part]) -> str:
    """Parts of a section, charts that follow one another beside one another."""
    made, charts = [], list[str]()
    for part in parts:
        if isinstance(part, Lines):
            charts.append(line_chart(part))
            continue
        made += _beside(charts)
        charts = []
        made.append(_part(part))
    return "".join([*made, *_beside(charts)])


def table_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls for itself where the page is narrow."""
    looks = [_look([row[column] for row in rows]) for column in range(len(head))]
    looks[0] = ""  # it names the row
    top = "".join(
        f'<th scope="col"{look}>{escape(cell)}</th>' for cell, look in zip(head, looks, strict=True)
    )
    lines = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(
            f"<td{look}>{escape(cell)}</td>" for cell, look in zip(row[1:], looks[1:], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _look(cells: Sequence[str]) -> str:
    """Numbers stand below one another."""
    return ' class="number"' if all(_NUMBER.match(cell) for cell in cells) else ""


def _beside(charts: Sequence[str]) -> list[str]:
    return [f'<div class="charts">{"".join(charts)}</div>'] if charts else []


def _part(part: Part) -> str:
    match part:
        case Prose():
            return f"<p{' class=bad' if part.bad else ''}>{escape(part.text)}</p>"
        case Tiles():
            return f'<dl class="tiles">{"".join(_tile(*row) for row in part.rows)}</dl>'
        case Facts():
            return _facts(part)
        case Verbatim():
            title = f"<h3>{escape(part.title)}</h3>" if part.title else ""
            return f"{title}<pre>{escape(part.text)}</pre>"
        case Table():
            return table_html(part.head, part.rows)
        case Bars():
            return bar_chart(part)
        case Lines():
            return line_chart(part)


def _tile(name: str, figure: str, more: str) -> str:
    return (
        f"<div><dt>{escape(name)}</dt><dd>{escape(figure)}</dd>"
        f"<dd><small>{escape(more)}</small></dd></div>"
    )


def _facts(part: Facts) -> str:
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(told) or '-'}</dd></div>"
        for name, told in part.rows.items()
    )
    held = f'<dl class="facts">{rows}</dl>'
    if not part.folded:
        return held
    return f"<details><summary>{escape(part.folded)}</summary>{held}</details>"
