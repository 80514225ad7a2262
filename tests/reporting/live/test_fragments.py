"""The parts of the live page: what they say in every state, with nothing that could run."""

import pytest

from flower_split.reporting.events import Event
from flower_split.reporting.live import RunView, fragments

EVIL = "<script>alert(1)</script>"
BEGUN = {
    "rounds": 4,
    "next_round": 0,
    "model": EVIL,
    "method": EVIL,
    "strategy": EVIL,
    "bottom_layers": EVIL,
    "top_layers": 1,
}


def shown(*events, now=100.0, samples=None, problem=""):
    view = RunView()
    view.take(
        Event(n=n, time=90.0 + n, kind=kind, fields=fields)
        for n, (kind, fields) in enumerate(events)
    )
    return fragments(view, samples or {}, now=now, problem=problem)


def silo_round(**more):
    fields = {"round": 1, "purpose": "evaluate", "silo": EVIL, "counted": True, "why": ""}
    metrics = {"metrics": {"eval-loss": 2.0}, "counters": {f"bytes-{EVIL}": 5.0}}
    return ("silo-round", {**fields, **metrics, **more})


def test_no_name_or_text_becomes_markup():
    parts = shown(
        ("run-begun", BEGUN),
        ("silo-joined", {"silo": EVIL}),
        silo_round(),
        silo_round(counted=False, why=EVIL),
        ("silo-left", {"silo": EVIL, "why": EVIL}),
        ("run-ended", {"state": EVIL, "why": EVIL, "seconds": 1, "left": [EVIL]}),
        samples={0: EVIL, 4: EVIL},
        problem=EVIL,
    )
    page = "".join(parts.values())
    assert "<script" not in page and page.count("&lt;script&gt;") > 12
    assert all(parts[name] for name in ("top", "tiles", "silos", "losses", "failures", "samples"))


@pytest.mark.parametrize(
    ("events", "now", "said"),
    [
        ([], 0.0, "Nothing has been written yet"),
        ([("run-begun", BEGUN)], 100.0, ">running<"),
        ([("run-begun", BEGUN)], 500.0, "Nothing has happened for 6 min 50 s"),
    ],
)
def test_the_state_of_a_run_is_told(events, now, said):
    assert said in shown(*events, now=now)["top"]


def test_a_run_that_cannot_be_read_says_why():
    top = shown(problem="events of version 9")["top"]
    assert "events of version 9" in top and "Nothing has been written" not in top


def test_a_run_that_ended_is_not_quiet():
    ended = ("run-ended", {"state": "failed", "why": "too few", "seconds": 1, "left": []})
    top = shown(("run-begun", BEGUN), ended, now=9e9)["top"]
    assert "too few" in top and ">failed<" in top and "Nothing has happened" not in top


def test_times_that_no_clock_has_break_nothing():
    view = RunView()
    view.take([Event(n=0, time=1e300, kind="silo-joined", fields={"silo": "a"})])
    assert "a has joined" in fragments(view, {}, now=0.0)["news"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"split.max-bottom-layers": 3}, "1 to 3 + 2 layers at silos"),
        ({"split.max-bottom-layers": EVIL}, "1 + 2 layers at silos"),
        ({}, "1 + 2 layers at silos"),
        (EVIL, "1 + 2 layers at silos"),
    ],
)
def test_layers_that_silos_choose_are_told_with_their_bounds(config, said):
    begun = {**BEGUN, "bottom_layers": 1, "top_layers": 2, "config": config}
    assert said in shown(("run-begun", begun))["top"]
