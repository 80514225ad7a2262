"""What a strategy tells of a run: in which order, of whom, and nothing that is secret."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from in_process_grid import FIRST_NODE, InProcessGrid
from toy_trunk import ToyHost, honest_reply, toy_config

from flower_split.config.sections import CheckpointConfig
from flower_split.errors import RoundError
from flower_split.reporting.events import EVENTS, EventLog, read_events
from flower_split.server.ticket_record import Stage
from flower_split.strategies import Alone, SplitStrategy, run_events
from flower_split.strategies.hosting.invited_silo import SeenSession
from flower_split.strategies.run_events import BROKE_OFF, NOT_CONNECTED, RunEvents
from flower_split.transport.messages import QueueUse, SessionSummary

CANARY = "canary"


def run(folder, *, reply=honest_reply, inner=None, label="", resume=False, grid=None, **fields):
    """The events of a toy run."""
    host, app = ToyHost(), ClientApp()
    for register in (app.train, app.evaluate):
        register()(lambda message, context: reply(message, context, host))
    in_process = (grid or InProcessGrid)(app, 2)
    config = toy_config(output_dir=str(folder), resume=resume, **fields)
    with EventLog(folder, resume=resume) as log:
        strategy = SplitStrategy(config, inner or FedAvg(), host=host, events=log, label=label)
        with suppress(RoundError):
            strategy.start(in_process)
    return read_events(folder / EVENTS)


def of(events, *kinds):
    return [event for event in events if event.kind in kinds]


def told(events, kind, *names):
    return [tuple(event.fields[name] for name in names) for event in of(events, kind)]


def test_a_run_is_told_from_its_beginning_in_order(tmp_path):
    events = run(tmp_path, num_server_rounds=1)
    assert [event.kind for event in events if event.kind != "gauges"] == [
        *("run-begun", "checkpoint-written", "round-begun", "exchange-begun"),
        *("silo-joined", "silo-began", "silo-finished") * 2,
        *("silo-round", "silo-round", "aggregated", "checkpoint-written"),
        *("exchange-begun", *("silo-began", "silo-finished") * 2),
        *("silo-round", "silo-round", "evaluated", "checkpoint-written", "round-ended"),
    ]
    begun = events[0].fields
    assert (begun["rounds"], begun["next_round"], begun["model"]) == (1, 0, "toy")
    assert begun["config"]["num-server-rounds"] == 1 and "torch" in begun["versions"]
    assert told(events, "silo-round", "silo", "purpose", "counted") == [
        ("0", "train", True),
        ("1", "train", True),
        ("0", "evaluate", True),
        ("1", "evaluate", True),
    ]
    of_training = of(events, "silo-round")[0].fields
    assert of_training["metrics"] == {"num-examples": 1, "train-loss": 0.5}
    assert of_training["counters"]["bytes-sent"] == 8
    assert told(events, "aggregated", "counted", "asked") == [(2, 2)]
    assert of(events, "evaluated")[0].fields["metrics"]["eval-loss"] == 0.25
    assert told(events, "checkpoint-written", "round", "complete") == [
        (0, True),
        (1, False),
        (1, True),
    ]


def test_nothing_secret_is_told(tmp_path):
    tokens = []

    def noted(message, context, host):
        tokens.append(message.content["config"]["split.token"])
        return honest_reply(message, context, host, told={"sample": f"{CANARY} text"})

    events = run(tmp_path, reply=noted, sample_prompt=f"{CANARY} prompt")
    assert told(events, "sample-written", "round") == [(2,)]
    written = (tmp_path / EVENTS).read_text()
    assert len(tokens) == 8 and not [token for token in tokens if token in written]
    assert CANARY not in written and str(tmp_path) not in written
    assert {e.fields["silo"] for e in events if "silo" in e.fields} == {"0", "1"}


def test_who_fails_is_told_by_name_with_the_reason(tmp_path):
    def one_fails(message, context, host):
        if context.node_config["partition-id"] == 1:
            host.break_off(message.content["config"]["split.token"])
            raise ValueError("silo 'x\ny': no data")
        return honest_reply(message, context, host)

    events = run(tmp_path, reply=one_fails, num_server_rounds=1)
    assert told(events, "silo-lost", "silo", "purpose", "why") == [
        ("1", "train", BROKE_OFF),
        ("1", "evaluate", BROKE_OFF),
    ]
    failed = [e.fields for e in of(events, "silo-round") if not e.fields["counted"]]
    assert [(one["silo"], one["metrics"]) for one in failed] == [("1", {}), ("1", {})]
    assert "no data" in failed[0]["why"] and "\n" not in failed[0]["why"]
    assert told(events, "aggregated", "counted", "asked") == [(1, 2)]


def test_a_run_that_fails_has_told_of_every_silo(tmp_path):
    def none(message, context, host):
        raise ValueError("broken")

    events = run(tmp_path, reply=none)
    assert [e.fields["counted"] for e in of(events, "silo-round")] == [False, False]
    assert not of(events, "aggregated")
    assert {e.fields["silo"] for e in of(events, "silo-round")} == {
        f"node {FIRST_NODE}",
        f"node {FIRST_NODE + 1}",
    }


def test_who_is_not_connected_any_more_has_left_and_joins_again(tmp_path):
    class Coming(InProcessGrid):
        exchanges = 0

        def push_messages(self, messages):
            self.exchanges += 1
            return super().push_messages(messages)

        def get_node_ids(self):
            return self.order[:1] if self.exchanges == 1 else self.order

    alone = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    events = run(tmp_path, grid=Coming, inner=alone, num_server_rounds=2)
    seen = [(e.kind, e.fields["silo"]) for e in of(events, "silo-joined", "silo-left")]
    assert seen == [
        ("silo-joined", "0"),
        ("silo-joined", "1"),
        ("silo-left", "1"),
        ("silo-joined", "1"),
    ]
    assert told(events, "silo-left", "why") == [(NOT_CONNECTED,)]


def test_the_baseline_says_that_it_is_one(tmp_path):
    events = run(tmp_path, inner=Alone(min_nodes=1), label="alone")
    assert events[0].kind == "baseline-begun" and not of(events, "run-begun")
    assert all(event.fields["alone"] for event in events)


def test_a_run_that_is_resumed_says_with_which_round_it_goes_on(tmp_path):
    kept = CheckpointConfig(keep=2)
    first = run(tmp_path, num_server_rounds=1, checkpoint=kept)
    events = run(tmp_path, num_server_rounds=2, resume=True, checkpoint=kept)
    assert [event.n for event in events] == list(range(len(events)))
    assert events[: len(first)] == first
    assert told(events, "run-begun", "next_round", "rounds") == [(0, 1), (2, 2)]


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Looks at sessions that the test makes up, and gives the events so far."""
    sessions = SimpleNamespace(terms=SimpleNamespace(server_round=1, purpose="train"), seen=dict)
    monkeypatch.setattr(run_events, "LOOK_SECONDS", 0.0)
    with EventLog(tmp_path) as log:
        teller = RunEvents(log)

        def look(**seen):
            sessions.seen = lambda: dict(enumerate(seen.values()))
            teller.look(sessions, SimpleNamespace(waiting=3))
            return read_events(tmp_path / EVENTS)

        yield look


def session(stage, silo="north", **counted):
    summary = SessionSummary(**{"steps": 0, "forwards": 0, "backwards": 0, "tokens": 0, **counted})
    return SeenSession(
        silo=silo, stage=stage, progress=lambda: summary if stage is Stage.OPEN else None
    )


def test_sessions_are_told_as_they_come_and_once(watched):
    assert not of(watched(a=session(Stage.PREPARED, "")), "silo-began")
    queue = QueueUse(seconds=1.5, rows=2, rows_beside=2)
    for _ in range(3):
        events = watched(a=session(Stage.OPEN, steps=4, tokens=99, queue=queue))
    assert told(events, "silo-began", "silo", "round", "purpose") == [("north", 1, "train")]
    assert not of(events, "silo-finished", "silo-lost")
    for _ in range(2):
        events = watched(a=session(Stage.COLLECTED))
    assert len(of(events, "silo-finished")) == 1


def test_gauges_are_seldom(watched):
    queue = QueueUse(seconds=1.5, rows=2, rows_beside=2)
    for _ in range(20):
        events = watched(a=session(Stage.OPEN, steps=4, tokens=99, queue=queue))
    (gauges,) = of(events, "gauges")
    assert dict(gauges.fields) == {
        "sessions": 1,
        "waiting": 3,
        "occupancy": 2.0,
        "silos": {"north": {"steps": 4, "tokens": 99, "waited": 1.5}},
    }
