"""Charts: their axes span the values, and what is drawn is where the axes say."""

import math
import re
from itertools import pairwise

import pytest

from flower_split.reporting.report.charts import bar_chart, line_chart, sparkline, ticks
from flower_split.reporting.report.sections import Bars, Lines


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (2.31, 4.48), (5, 5), (0, 0), (1e-9, 2e-9), (-3, 8e6), (1e30, 1.1e30)],
)
def test_ticks_span_the_values_and_are_few(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    assert 2 <= len(found) <= 8
    assert all(a < b and math.isfinite(b) for a, b in pairwise(found))


def test_points_are_within_the_chart_and_in_order():
    svg = line_chart(Lines(title="t", unit="u", series={"a": [(0, 3.0), (5, 1.0), (9, 2.0)]}))
    (points,) = re.findall(r'<polyline class="c0" points="([^"]*)"', svg)
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert all(0 < x < 440 and 0 < y < 230 for x, y in places)
    assert places[0][1] < places[2][1] < places[1][1]  # 3 is above 2 is above 1


def test_an_axis_has_what_it_shall_have_at_least():
    points = {"a": [(0, 0.62), (1, 0.9)]}
    told = re.compile(r'class="end">([^<]*)<')
    alone = told.findall(line_chart(Lines(title="t", unit="u", series=points)))
    shares = line_chart(Lines(title="t", unit="u", series=points, within=(0.0, 1.0)))
    assert float(alone[0]) > 0.5
    assert [float(one) for one in told.findall(shares)][:: len(told.findall(shares)) - 1] == [0, 1]


def test_one_round_is_a_point():
    svg = line_chart(Lines(title="t", unit="u", series={"a": [(0, 3.0)]}))
    assert svg.count("<circle") == 1 and "polyline" not in svg


def test_bars_have_one_scale():
    svg = bar_chart(Bars(title="t", unit="bytes", rows={"a": {"h1": 4, "g1": 4}, "b": {"h1": 2}}))
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="10">', svg)]
    assert widths == [50, 50, 25]
    assert "8 B" in svg


def test_nothing_to_draw_is_nothing():
    assert line_chart(Lines(title="t", unit="u", series={})) == ""
    assert bar_chart(Bars(title="t", unit="bytes", rows={"a": {}})) == ""
    assert sparkline([1.0], "x") == ""
