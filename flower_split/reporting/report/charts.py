"""Charts as SVG within a page: lines over rounds, and bars; coloured by the page's style sheet."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise

from flower_split.config.silo_order import silo_order
from flower_split.reporting.figures import four_digits, in_bytes, in_seconds
from flower_split.reporting.report.sections import Bars, Lines

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 26
"""Room of a line chart for its axes, in the units of its width and height."""
COLOURS = 10
MOST_LINES = 10
"""Silos that have a colour each; with more, all are drawn alike, and their mean with weight."""
MOST_BARS = 40

Points = Sequence[tuple[int, float]]


def line_chart(chart: Lines) -> str:
    """A figure with an SVG and a legend."""
    drawn = [points for points in (*chart.series.values(), *chart.dashed.values()) if points]
    if not drawn:
        return ""
    scale = _Scale(drawn, chart.within)
    many = len(chart.series) > MOST_LINES
    body = [*scale.axes()]
    names = sorted({*chart.series, *chart.dashed}, key=silo_order)
    for index, silo in enumerate(names):
        look = "many" if many else f"c{index % COLOURS}"
        if not many:
            alone = f"{silo}, alone"
            body += _line(scale, chart.dashed.get(silo, ()), f"{look} dashed", alone, chart.along)
        body += _line(scale, chart.series.get(silo, ()), look, silo, chart.along, dots=not many)
    if many:
        body += _line(scale, _mean(chart.series), "c0 mean", "mean", chart.along)
    return (
        f'<figure class="chart"><figcaption>{escape(chart.title)} <small>{escape(chart.unit)}'
        f'</small></figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(chart.title)} by {escape(chart.along)}">{"".join(body)}</svg>'
        f"{_legend(names, chart.each, many=many, dashed=bool(chart.dashed))}</figure>"
    )


def bar_chart(chart: Bars) -> str:
    """A figure with a bar a silo, all to one scale, and a legend of their parts."""
    shown = in_bytes if chart.unit == "bytes" else in_seconds
    rows = sorted(chart.rows.items(), key=lambda row: silo_order(row[0]))
    most = max((sum(held.values()) for _, held in rows), default=0.0)
    if most <= 0:
        return ""
    names = list(dict.fromkeys(name for _, held in rows for name in held))
    lines = []
    for silo, held in rows[:MOST_BARS]:
        place, parts = 0.0, []
        for index, name in enumerate(names):
            width = 100 * held.get(name, 0.0) / most
            if width > 0:
                parts.append(
                    f'<rect class="c{index % COLOURS}" x="{place:.3f}" width="{width:.3f}" '
                    f'height="10"><title>{escape(name)}: {escape(shown(held[name]))}</title></rect>'
                )
            place += width
        lines.append(
            f'<div class="bar"><span>{escape(silo)}</span><svg viewBox="0 0 100 10" role="img" '
            f'preserveAspectRatio="none" aria-label="{escape(silo)}">{"".join(parts)}</svg>'
            f"<span>{escape(shown(sum(held.values())))}</span></div>"
        )
    more = f"<p>and {len(rows) - MOST_BARS} more silos</p>" if len(rows) > MOST_BARS else ""
    items = "".join(_item(f"c{i % COLOURS}", name) for i, name in enumerate(names))
    return (
        f'<figure class="chart bars"><figcaption>{escape(chart.title)}</figcaption>'
        f'{"".join(lines)}{more}<ul class="legend">{items}</ul></figure>'
    )


def sparkline(values: Sequence[float], label: str) -> str:
    """A line without axes, from 0 up."""
    if len(values) < 2:
        return ""
    most = max(values) or 1.0
    step = 100 / (len(values) - 1)
    points = " ".join(f"{i * step:.1f},{24 - 22 * v / most:.1f}" for i, v in enumerate(values))
    return (
        f'<svg class="spark" viewBox="0 0 100 26" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}"><polyline points="{points}"/></svg>'
    )


class _Scale:
    """Where rounds and values are in a chart."""

    def __init__(self, drawn: Sequence[Points], within: tuple[float, float] | None) -> None:
        rounds = [number for points in drawn for number, _ in points]
        values = [value for points in drawn for _, value in points] + [*(within or ())]
        self._first, self._last = min(rounds), max(max(rounds), min(rounds) + 1)
        self._ticks = ticks(min(values), max(values))

    def place(self, number: int, value: float) -> tuple[float, float]:
        low, high = self._ticks[0], self._ticks[-1]
        x = LEFT + (WIDTH - LEFT - RIGHT) * (number - self._first) / (self._last - self._first)
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)
        return x, y

    def axes(self) -> Iterator[str]:
        for tick in self._ticks:
            _, y = self.place(self._first, tick)
            yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" class="end">{four_digits(tick)}</text>'
        every = max(1, math.ceil((self._last - self._first) / 8))
        for number in range(self._first, self._last + 1, every):
            x, _ = self.place(number, self._ticks[0])
            yield f'<text x="{x:.1f}" y="{HEIGHT - 9}" class="middle">{number}</text>'


def ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers that span `low` to `high`, and are not all the same."""
    span = high - low
    if span <= 1e-9 * max(1.0, abs(high)):
        span = max(abs(high) * 0.1, 1e-6)
        low, high = low - span / 2, high + span / 2
    raw = span / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    found = [number * step for number in range(first, max(last, first + 1) + 1)]
    if found[-1] < high:  # by a rounding error
        found.append((last + 1) * step)
    return found


def _line(
    scale: _Scale, points: Points, look: str, label: str, along: str, *, dots: bool = True
) -> Iterator[str]:
    places = [scale.place(*point) for point in points]
    if any(a[0] != b[0] for a, b in pairwise(points)):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline class="{look}" points="{path}"/>'
    if (dots and len(points) <= 60) or len(points) == 1:
        for (x, y), (number, value) in zip(places, points, strict=True):
            told = f"{label}, {along} {number}: {four_digits(value)}"
            yield (
                f'<circle class="{look}" cx="{x:.1f}" cy="{y:.1f}" r="2.6">'
                f"<title>{escape(told)}</title></circle>"
            )


def _mean(series: Mapping[str, Points]) -> list[tuple[int, float]]:
    by_round: dict[int, list[float]] = {}
    for points in series.values():
        for number, value in points:
            by_round.setdefault(number, []).append(value)
    return [(number, sum(held) / len(held)) for number, held in sorted(by_round.items())]


def _legend(names: Sequence[str], each: str, *, many: bool, dashed: bool) -> str:
    if many:
        items = [_item("many", f"{len(names)} {each or 'line'}s"), _item("c0", "their mean")]
    else:
        said = [f"{each} {name}".strip() for name in names]
        items = [_item(f"c{i % COLOURS}", name) for i, name in enumerate(said)]
        items += ["<li>dashed: alone</li>"] if dashed else []
    return f'<ul class="legend">{"".join(items)}</ul>'


def _item(look: str, text: str) -> str:
    return (
        f'<li><svg viewBox="0 0 10 10" aria-hidden="true"><rect class="{look}" width="10" '
        f'height="10" rx="2"/></svg>{escape(text)}</li>'
    )
