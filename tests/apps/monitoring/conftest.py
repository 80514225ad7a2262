"""A run's folder to look at, whose events a test writes."""

import pytest

from flower_split.reporting import RoundResult, RunResult, write_result
from flower_split.reporting.events import EventLog

BEGUN = {
    "rounds": 3,
    "next_round": 0,
    "model": "tiny-model",
    "method": "LoRA",
    "strategy": "fedavg",
    "bottom_layers": 1,
    "top_layers": 1,
}


@pytest.fixture
def run(tmp_path):
    """The folder of a run, which is there."""
    return tmp_path


@pytest.fixture
def log(run):
    """Its events so far: it has begun, and one silo has told its loss."""
    with EventLog(run) as events:
        events.tell("run-begun", **BEGUN)
        events.tell("silo-joined", silo="north")
        tell_loss(events, "north", 0, 3.25)
        yield events


def tell_loss(log, silo, number, loss):
    log.tell(
        "silo-round",
        round=number,
        purpose="evaluate",
        silo=silo,
        counted=True,
        why="",
        metrics={"eval-loss": loss},
        counters={},
    )


@pytest.fixture
def write_sample(run, log):
    """Writes a sample of a round as a run does: into the result."""

    def write(number, text):
        log.tell("sample-written", round=number)
        rounds = [RoundResult(server_round=number)]
        write_result(RunResult(rounds=rounds, samples={number: text}), run / "result.json")

    return write


@pytest.fixture
def loss():
    return tell_loss
