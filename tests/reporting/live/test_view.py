"""What events add up to: a run that goes, fails, resumes, and has silos that are late or lost."""

import pytest

from flower_split.reporting.events import Event
from flower_split.reporting.live import RunView
from flower_split.reporting.live.view import MOST_SILOS

BEGUN = {"rounds": 4, "next_round": 0, "model": "qwen"}


@pytest.fixture
def view():
    return RunView()


@pytest.fixture
def told(view):
    """Lets an event happen, each a second after the one before."""

    def tell(kind, **fields):
        number = tell.number = getattr(tell, "number", 0) + 1
        view.take([Event(n=number, time=float(number), kind=kind, fields=fields)])
        return view

    return tell


def silo_round(told, silo, number, loss, purpose="evaluate", **more):
    fields = {
        "round": number,
        "purpose": purpose,
        "silo": silo,
        "counted": True,
        "why": "",
        "metrics": {"eval-loss" if purpose == "evaluate" else "train-loss": loss},
        "counters": {"bytes-h1": 10, "bytes-sent": 99, "tokens-per-second": 50.0},
    }
    return told("silo-round", **{**fields, **more})


def test_before_the_first_event_the_run_waits(view):
    assert view.state == "waiting" and view.time_left is None


def test_a_run_from_its_beginning_to_its_end(view, told):
    told("run-begun", **BEGUN)
    for number in (0, 1):
        told("round-begun", round=number, rounds=4)
        told("exchange-begun", round=number, purpose="evaluate", asked=1)
        told("silo-joined", silo="north")
        told("silo-began", round=number, purpose="evaluate", silo="north")
        assert view.silos["north"].state == "working"
        told("silo-finished", round=number, purpose="evaluate", silo="north")
        silo_round(told, "north", number, 3.0 - number)
        told("round-ended", round=number, seconds=10.0)
    assert (view.state, view.round, view.purpose) == ("running", 1, "evaluate")
    north = view.silos["north"]
    assert (north.state, north.rate) == ("done", 50.0)
    assert north.evaluate == {0: 3.0, 1: 2.0}
    assert north.bytes == {0: {"h1": 10.0}, 1: {"h1": 10.0}}
    assert view.time_left == 30.0
    told("run-ended", state="completed", why="", seconds=9.0, left=["adapter"])
    assert (view.state, view.left, view.time_left) == ("completed", ["adapter"], None)


def test_who_is_lost_refused_or_gone_is_told_with_the_reason(view, told):
    told("run-begun", **BEGUN)
    about = {"round": 1, "purpose": "train", "silo": "north"}
    told("silo-began", **about)
    told("silo-lost", **about, why="broke off")
    assert (view.silos["north"].state, view.silos["north"].why) == ("lost", "broke off")
    silo_round(told, "north", 1, 1.0, "train", counted=False, why="no reply", metrics={})
    assert (view.silos["north"].state, view.silos["north"].why) == ("lost", "no reply")
    silo_round(told, "south", 1, 1.0, "train", counted=False, why="too large", metrics={})
    assert view.silos["south"].state == "refused"
    assert list(view.failures) == [(1, "north", "no reply"), (1, "south", "too large")]
    told("silo-left", silo="north", why="not connected")
    told("exchange-begun", round=2, purpose="train", asked=1)
    assert view.silos["north"].state == "left" and view.silos["south"].state == "silent"


def test_who_is_far_behind_the_others_is_slow(view, told):
    told("run-begun", **BEGUN)
    for silo in "abc":
        told("silo-began", round=1, purpose="train", silo=silo)
    for tokens in (100, 700):
        counts = {"a": 20, "b": 19, "c": 3}
        silos = {s: {"steps": n, "tokens": tokens, "waited": 0.0} for s, n in counts.items()}
        told("gauges", sessions=3, waiting=1, occupancy=1.5, silos=silos)
    assert [one.state for one in view.of_silos] == ["working", "working", "slow"]
    assert list(view.rates) == [1800.0]
    assert view.silos["a"].rate == 600.0 and (view.waiting, view.occupancy) == (1, 1.5)


def test_what_a_resumed_run_does_again_takes_the_place_of_what_was(view, told):
    told("run-begun", **BEGUN)
    for number in range(3):
        silo_round(told, "north", number, 3.0 - number)
        told("round-ended", round=number, seconds=10.0)
    told("run-begun", **{**BEGUN, "next_round": 2})
    assert view.silos["north"].evaluate == {0: 3.0, 1: 2.0}
    assert view.silos["north"].bytes.keys() == view.seconds.keys() == {0, 1}
    assert view.state == "running" and view.silos["north"].state == "silent"
    told("run-begun", **BEGUN)
    assert view.silos["north"].evaluate == {}


def test_the_baseline_is_kept_apart(view, told):
    told("run-begun", **BEGUN)
    silo_round(told, "north", 1, 2.0)
    told("baseline-begun", rounds=4, next_round=0, alone=True)
    silo_round(told, "north", 1, 2.5, alone=True)
    assert view.silos["north"].evaluate == {1: 2.0}
    assert view.lonely["north"].evaluate == {1: 2.5}
    assert view.alone


def test_events_that_are_not_as_documented_change_nothing(view, told):
    told("run-begun", **BEGUN)
    strange = [
        ("run-ended", {}),
        ("silo-round", {"silo": "x", "round": "one"}),
        ("gauges", {"waiting": [], "occupancy": 1, "silos": {}}),
        ("gauges", {"waiting": 1, "occupancy": 1, "silos": {"a": 3}}),
        ("round-ended", {"round": 1, "seconds": None}),
        ("take", {}),
        ("silo", {}),
        ("invented-later", {"a": 1}),
    ]
    for kind, fields in strange:
        told(kind, **fields)
    assert view.state == "running" and view.seconds == {}


def test_silos_without_end_are_not_believed(view, told):
    for number in range(MOST_SILOS + 50):
        told("silo-joined", silo=str(number))
    assert len(view.silos) == MOST_SILOS


def test_numbers_that_are_texts_change_nothing(view, told):
    told("run-begun", **BEGUN)
    told("round-begun", round="9" * 400, rounds=4)
    told("round-ended", round=1, seconds="1e999")
    assert (view.round, view.seconds) == (0, {})
