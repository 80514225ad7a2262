from hypothesis import given
from hypothesis import strategies as st

from flower_split.config.silo_order import silo_order


def test_numbers_come_by_value_and_then_all_other_names() -> None:
    names = ["b", "10", "node 3", "9", "a", "2a", "", "٣", "²", "1" * 30, "010", "-1"]
    assert sorted(names, key=silo_order) == [
        "٣",
        "9",
        "010",
        "10",
        "1" * 30,
        "",
        "-1",
        "2a",
        "a",
        "b",
        "node 3",
        "²",
    ]


@given(st.lists(st.text(max_size=4) | st.integers(0, 10**6).map(str), unique=True))
def test_the_order_is_that_of_the_names_alone(names: list[str]) -> None:
    backwards = list(reversed(names))
    assert sorted(backwards, key=silo_order) == sorted(names, key=silo_order)
    assert len({silo_order(name) for name in names}) == len(names)
