"""Figures for people."""

import pytest

from flower_split.reporting.figures import four_digits, in_bytes, in_seconds


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3.5981234567, "3.598"),
        (0.0123456, "0.01235"),
        (-36.3649, "-36.36"),
        (123456.7, "123457"),
        (0.0, "0"),
        (2.0, "2"),
        (1e-9, "1.000e-09"),
        (9.99996, "10"),
        (float("nan"), "nan"),
    ],
)
def test_four_digits(value: float, said: str) -> None:
    assert four_digits(value) == said


def test_bytes_and_seconds_have_units() -> None:
    assert [in_bytes(n) for n in (9, 1234, 5_600_000, 7.2e9, 2e12)] == [
        "9 B",
        "1.2 kB",
        "5.6 MB",
        "7.2 GB",
        "2.0 TB",
    ]
    assert [in_seconds(n) for n in (4.21, 200, 7500)] == ["4.2 s", "3 min 20 s", "2 h 5 min"]
