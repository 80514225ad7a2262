import pytest

from flower_split.transport.records import miscounted


def test_one_of_each_is_no_problem_whatever_it_is_called() -> None:
    assert miscounted("the message", {"ArrayRecord": {"x": 1}, "ConfigRecord": {"y": 2}}) == ""


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (
            {"ArrayRecord": {}, "ConfigRecord": {"a": 1, "b": 2}},
            "the reply has 0 ArrayRecords and 2 ConfigRecords, expected exactly one of each",
        ),
        ({"MetricRecord": {}}, "the reply has 0 MetricRecords, expected exactly one"),
    ],
)
def test_what_was_found_is_said(records: dict[str, dict[str, int]], said: str) -> None:
    assert miscounted("the reply", records) == said
