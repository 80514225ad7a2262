"""Counters are what the table says, whoever sent them."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_split.reporting.counters import COUNTERS, MOST, checked_counters, trunk_counters
from flower_split.transport.messages import QueueUse, SessionSummary

ANYTHING = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.text(), st.binary(), st.lists(st.integers())
)
NAMES = st.one_of(st.sampled_from(sorted(COUNTERS)), st.text())


@given(st.dictionaries(NAMES, ANYTHING))
def test_nothing_else_is_left_whatever_is_told(told: dict[str, Any]) -> None:
    found = checked_counters(told)
    assert found.keys() <= told.keys() & COUNTERS.keys()
    for name, value in found.items():
        assert value is told[name] and type(value) in (int, float)
        assert math.isfinite(value) and 0 <= value <= MOST


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("seconds", 1, True),
        ("seconds", 1.5, True),
        ("seconds", math.inf, False),
        ("seconds", True, False),
        ("bytes-h1", 0, True),
        ("bytes-h1", 1.0, False),
        ("bytes-h1", MOST + 1, False),
        ("state-resumed", 1, True),
        ("state-resumed", 2, False),
        ("parameter-share", 1.01, False),
        ("anything", 1, False),
    ],
)
def test_kind_and_bounds(name: str, value: object, kept: bool) -> None:
    assert checked_counters({name: value}) == ({name: value} if kept else {})


def test_every_counter_is_explained_to_operators() -> None:
    text = (Path(__file__).parents[2] / "docs" / "counters.md").read_text(encoding="utf-8")
    for name, counter in COUNTERS.items():
        assert f"| `{name}` | {counter.unit} | {counter.meaning} |" in text, name


def test_what_the_trunk_counts_is_known_by_name() -> None:
    counts = {"steps": 2, "forwards": 6, "backwards": 4, "tokens": 90}
    found = trunk_counters(SessionSummary(**counts))
    assert found == {"trunk-forwards": 6, "trunk-tokens": 90, "optimizer-steps": 2}
    queue = QueueUse(seconds=0.5, length=5, rows=30, rows_beside=90)
    found = trunk_counters(SessionSummary(**counts, queue=queue))
    assert found["queue-seconds"] == 0.5
    assert found["queue-length"] == 0.5
    assert found["batch-occupancy"] == 4.0
    assert checked_counters(found) == found
