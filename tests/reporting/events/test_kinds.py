"""Events as lines: nothing breaks out of one, and the page of the documentation knows them all."""

import json
import math
import re
from pathlib import Path

import pytest

from flower_split.reporting.events.kinds import KINDS, LONGEST_TEXT, OWN, line_of, numbers

DOCS = Path(__file__).parents[3] / "docs/events.md"


def test_no_text_breaks_its_line_or_is_long():
    why = "a\nb\x00\ud800" + "é" * 1000
    line = line_of("silo-left", {"silo": "x", "why": why}, n=1, time=2.0)
    assert line.count(b"\n") == 1 and line.isascii()
    told = json.loads(line)["why"]
    assert told.startswith("a b  é") and len(told) == LONGEST_TEXT


def test_a_number_that_json_cannot_hold_is_null():
    line = line_of("round-ended", {"round": 1, "seconds": math.inf}, n=1, time=2.0)
    assert json.loads(line)["seconds"] is None


def test_a_field_that_is_not_in_the_table_is_refused():
    with pytest.raises(ValueError, match="no field text"):
        line_of("sample-written", {"round": 1, "text": "once upon"}, n=1, time=2.0)


def test_metrics_that_are_lists_are_no_numbers():
    assert numbers({"a": 1, "b": 0.5, "c": [1, 2], "d": True, "e": "x"}) == {"a": 1, "b": 0.5}


def test_the_documentation_has_every_kind_with_its_fields():
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*?) \|", DOCS.read_text(), re.MULTILINE))
    for name in OWN:
        assert name in rows
    for kind, fields in KINDS.items():
        assert re.findall(r"`([\w]+)`", rows[kind]) == list(fields), kind
    assert rows.keys() == {*OWN, *KINDS}
