"""Bad rows: what an error about one says, and what is left of them where they are left out."""

import pytest

from flower_split.data.reading.bad_rows import BadRows
from flower_split.errors import DataError


def test_who_is_stopped_by_a_row_is_told_how_to_leave_it_out() -> None:
    with pytest.raises(DataError, match=r"3: field 'text' is null\. .* data.bad-rows to 'skip'"):
        BadRows("stop").take(DataError("a.jsonl, line 3: field 'text' is null"), "line 3")
    known = DataError("a.jsonl, line 3: no field 'text'. Set data.text to 'answer'")
    with pytest.raises(DataError) as caught:
        BadRows("stop").take(known, "line 3")
    assert caught.value is known


def test_rows_that_are_left_out_are_counted_and_the_first_named() -> None:
    bad = BadRows("skip")
    for line in range(9):
        bad.take(DataError(f"line {line} is no JSON"), f"line {line}")
    assert bad.count == 9 and bad.places == [f"line {line}" for line in range(5)]
    assert "all of its 9 rows are bad" in str(bad.refuse_all("a.jsonl"))
    assert "line 0 is no JSON" in str(bad.refuse_all("a.jsonl"))
