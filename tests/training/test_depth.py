"""The depth is found by measurement, and is only ever a matter of time."""

import pytest

from flower_split.training.depth import Depth


def run(depth: Depth, seconds: dict[int, float], waited: dict[int, float], steps: int = 30) -> None:
    for _ in range(steps):
        depth.observe(
            tokens=1000, seconds=seconds[depth.value], waited=waited.get(depth.value, 0.0)
        )


@pytest.mark.parametrize(("wanted", "limit", "value"), [(4, 8, 4), (8, 3, 3), (1, 8, 1), (0, 1, 1)])
def test_what_is_asked_for_is_taken_up_to_the_limit(wanted: int, limit: int, value: int) -> None:
    depth = Depth(wanted, limit)
    assert depth.settled and depth.value == value
    run(depth, {value: 1.0}, {value: 0.9})
    assert depth.value == value


def test_it_grows_while_that_pays() -> None:
    depth = Depth(0, 64)
    assert not depth.settled and depth.value == 2
    seconds = {2: 4.0, 4: 2.0, 8: 1.0, 16: 0.99, 32: 0.98}
    run(depth, seconds, {d: 0.5 * s for d, s in seconds.items()})
    assert depth.settled and depth.value == 8


def test_it_stays_where_nothing_waits() -> None:
    depth = Depth(0, 64)
    run(depth, {2: 1.0}, {2: 0.01})
    assert depth.settled and depth.value == 2


def test_it_ends_at_the_limit() -> None:
    depth = Depth(0, 6)
    run(depth, {2: 4.0, 4: 2.0, 6: 1.0}, {2: 3.0, 4: 1.5, 6: 0.9})
    assert depth.settled and depth.value == 6


def test_one_disturbed_step_and_the_first_do_not_count() -> None:
    depth = Depth(0, 8)
    for seconds in (100.0, 50.0, 4.0, 2.0, 90.0):
        depth.observe(tokens=1000, seconds=seconds, waited=seconds / 2)
    assert depth.value == 8
