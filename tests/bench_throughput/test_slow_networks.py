"""Training over a slow link, at toy size."""

import pytest
import slow_networks
from slow_networks import Link, Silo, Step

pytestmark = pytest.mark.slow


@pytest.mark.exhaustive
def test_it_measures_every_cell() -> None:
    found = slow_networks.measure(toy=True)
    assert 0 < found.ratios["wan_over_bound"] < 1.5
    assert [(cell["codec"], cell["depth"]) for cell in found.figures["cells"]] == [
        ("fp32", 1),
        ("fp32", 4),
    ]


def test_a_cell_says_what_bounds_it() -> None:
    link = Link(round_trip_ms=50, mbit=8)
    for seconds, by in ((2.0, "wire"), (9.0, "computation")):
        step = Step(seconds=seconds, upward=3e6, downward=1e6)
        cell = slow_networks.cell_of(step, step, link, "fp32", 4, slow_networks.TOY)
        assert cell["bound_by"] == by


def test_the_bound_is_the_longest_of_what_can_overlap() -> None:
    link = Link(round_trip_ms=50, mbit=8)
    assert slow_networks.bound(Step(seconds=2.0, upward=3e6, downward=1e6), link) == 3.0
    assert slow_networks.bound(Step(seconds=2.0, upward=1e6, downward=4e6), link) == 4.0
    assert slow_networks.bound(Step(seconds=9.0, upward=1e6, downward=1e6), link) == 9.0
    pause = slow_networks.pause(Step(seconds=2.0, upward=3e6, downward=4e6), link, microbatches=4)
    assert pause == pytest.approx(2 * 0.05 + 0.5)


@pytest.mark.exhaustive
def test_depth_hides_the_delay_and_is_found_by_measurement() -> None:
    """One at a time, a step of four microbatches takes nine round trips; at once, three."""
    link = Link(round_trip_ms=400)  # far more than a busy machine computes
    with Silo(slow_networks.TOY) as silo:
        one = silo.step(link, "fp32", 1, steps=1).seconds
        four = silo.step(link, "fp32", 4, steps=1).seconds
        found = silo.step(link, "fp32", 0, steps=6).seconds
    assert one >= 9 * 0.4
    assert four < 0.8 * one
    assert found < 0.8 * one
