"""What Prometheus' own parser reads of a run."""

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from flower_split.reporting.events import Event
from flower_split.reporting.live import RunView
from flower_split.reporting.live.metrics import RunMetrics


def event(kind, **fields):
    return Event(n=0, time=100.0, kind=kind, fields=fields)


def round_of(silo, counted=True, **counters):
    return event(
        "silo-round",
        round=1,
        purpose="train",
        silo=silo,
        counted=counted,
        why="" if counted else "late",
        metrics={"train-loss": 2.5},
        counters=counters,
    )


def read(*events):
    view, metrics = RunView(), RunMetrics()
    view.take(events)
    metrics.take(events)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.text(view).decode())
        for sample in family.samples
    }


def test_counters_add_up_by_silo_and_hop():
    told = read(
        round_of("north", **{"trunk-tokens": 100, "bytes-h1": 8, "bytes-sent": 9}),
        round_of("north", **{"trunk-tokens": 50, "bytes-h1": 4, "bytes-g1": 2}),
        round_of('so"uth\n', counted=False, **{"trunk-tokens": 7}),
    )
    assert told["flower_split_tokens_total", "north"] == 150
    assert told["flower_split_tokens_total", 'so"uth\n'] == 7
    assert told["flower_split_wire_bytes_total", "h1", "north"] == 12
    assert told["flower_split_wire_bytes_total", "g1", "north"] == 2
    assert ("flower_split_wire_bytes_total", "north", "sent") not in told
    assert told["flower_split_replies_refused_total", 'so"uth\n', "train"] == 1
    assert told["flower_split_silo_loss", "north", "train"] == 2.5


def test_gauges_are_those_of_the_page():
    told = read(
        event("run-begun", rounds=3, next_round=0, model="tiny", method="LoRA"),
        event("round-begun", round=2, rounds=3),
        event("silo-began", round=2, purpose="train", silo="north"),
        event("gauges", sessions=1, waiting=4, occupancy=1.5, silos={}),
    )
    assert told["flower_split_run_state", "running"] == 1
    assert told["flower_split_run_state", "failed"] == 0
    assert told["flower_split_round",] == 2 and told["flower_split_rounds",] == 3
    assert told["flower_split_queue_waiting",] == 4 and told["flower_split_open_sessions",] == 1
    assert told["flower_split_silos", "working"] == 1
    assert told["flower_split_run_info", "LoRA", "tiny"] == 1


def test_what_is_no_event_of_this_version_is_passed_over():
    told = read(
        event("silo-round", silo="north"),
        round_of("north", **{"trunk-tokens": "many"}),
        round_of("north", **{"trunk-tokens": 3}),
    )
    assert told["flower_split_tokens_total", "north"] == 3
