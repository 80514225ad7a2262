"""A run that is killed at any moment and resumed ends as if nothing had happened, to the bit."""

import random
import time
from functools import partial

import pytest
from killable_run import Runner, after
from run_outcome import outcome

from flower_split.checkpoint import find_checkpoint

ROUNDS = 3
CASES = {
    "federated": {"strategy.name": "fedadam", "lora.dropout": 0.1, "train.schedule": "cosine"},
    "shared": {"trunk.adapters": "shared", "strategy.name": "fedavgm"},
    "partial": {
        "trunk.adapters": "frozen",
        "strategy.fraction-train": 0.5,
        "strategy.fraction-evaluate": 0.5,
        "strategy.min-nodes": 1,
    },
    "personal": {"strategy.name": "flora", "strategy.personal": "layers.1, layers.3"},
    "alone": {"baseline-alone": True, "train.accumulation": 2},
}


@pytest.fixture(scope="module")
def runner():
    with Runner() as started:
        yield started


def values(run_config, output, **changes):
    return {
        **run_config,
        "num-server-rounds": ROUNDS,
        "output-dir": str(output),
        "round-timeout": 600.0,  # for a busy machine, on which a round takes minutes
        "checkpoint.keep-best": True,
        "sample-prompt": "the sum of",
        **changes,
    }


def interrupted(run, given, draw, seconds, kills):
    """Run with up to so many kills at random times, then to the end; how often it was killed."""
    killed = 0
    for _ in range(kills):
        killed += not run(given, kill_when=after(draw.uniform(0, seconds)))
    while not run(given):
        raise AssertionError("nobody killed this run")
    return killed


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("case", "seeds", "kills"),
    [
        ("federated", 3, 6),
        pytest.param("shared", 2, 5, marks=pytest.mark.exhaustive),
        ("partial", 2, 5),
        pytest.param("personal", 2, 5, marks=pytest.mark.exhaustive),
        pytest.param("alone", 2, 6, marks=pytest.mark.exhaustive),
    ],
)
def test_row_04_a_killed_and_resumed_run_ends_as_an_uninterrupted_one(
    runner, run_config, tmp_path, case, seeds, kills
):
    run = partial(runner.run, state_home=tmp_path / "state")
    started = time.monotonic()
    assert run(values(run_config, tmp_path / "whole", **CASES[case]))
    seconds = time.monotonic() - started
    wanted = outcome(tmp_path / "whole")
    for seed in range(seeds):
        output = tmp_path / str(seed)
        given = values(run_config, output, resume=True, **CASES[case])
        killed = interrupted(run, given, random.Random(seed), seconds, kills)
        adapter, report = outcome(output)
        assert report == wanted[1], (seed, killed)
        assert adapter == wanted[0], (seed, killed)
        best = find_checkpoint(tmp_path / "whole" / "checkpoints", best=True)
        assert find_checkpoint(output / "checkpoints", best=True).server_round == best.server_round
