"""DP-SGD where something dies in mid-round, and at a trunk service: ε counts all that was drawn."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app import Context, RecordDict
from in_process_grid import RUN_ID, InProcessGrid
from killable_run import SILOS, Runner
from tiny_checkpoint import save_tiny_run, tiny_run_config
from trunk_process import TrunkProcess
from trunk_services import at, serving

from flower_split.apps.client_app import app as client_app
from flower_split.apps.server_app import app as server_app
from flower_split.client.step_account import BLOCK, FILE, StepAccount
from flower_split.config.run_config import read_run_config
from flower_split.privacy import SampledGaussians, secure_noise

pytest.importorskip("dp_accounting")

STEPS = 3
"""Of a round."""
DP = {
    "dp.noise": 1.0,
    "dp.clip": 0.1,
    "train.max-grad-norm": 0.0,
    "train.local-steps": STEPS,
    "strategy.fraction-evaluate": 0.0,
    "evaluate-initial": False,
    "round-timeout": 600.0,  # for a busy machine
}


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    return {**tiny_run_config(save_tiny_run(tmp_path_factory.mktemp("tiny"))), **DP}


def run(values, folder):
    nodes = [{"silo": f"clinic-{n}", "state-dir": str(folder / f"state-{n}")} for n in range(SILOS)]
    given = {**values, "output-dir": str(folder / "output")}
    grid = InProcessGrid(client_app, SILOS, run_config=given, node_config=nodes)
    server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), given))
    return told(folder)


def told(folder):
    (statement,) = json.loads((folder / "output" / "result.json").read_text())["privacy"]
    return statement


def counted(folder):
    """Steps in the account of every silo below `folder`, by its path."""
    found = {}
    for path in folder.rglob(FILE):
        try:
            found[path] = json.loads(path.read_bytes())["steps"]
        except (OSError, ValueError, KeyError):  # it is being written
            continue
    return found


def epsilon_of(values, statement, steps):
    expected = values["train.batch-size"] * values.get("train.accumulation", 1)
    chance = expected / statement["releases"]["dp-examples"]
    return SampledGaussians(noise=values["dp.noise"], chance=chance, times=steps).epsilon(1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_in_mid_round_counts_what_it_had_drawn(values, tmp_path):
    rounds, state = 3, tmp_path / "state"
    given = {
        **values,
        "num-server-rounds": rounds,
        "output-dir": str(tmp_path / "output"),
        "resume": True,
    }
    in_second_round = STEPS + BLOCK
    with Runner() as runner:
        go = partial(runner.run, given, state_home=state)
        whole = go(kill_when=lambda: in_second_round in counted(state).values())
        at_the_kill = counted(state)
        assert not whole and max(at_the_kill.values()) == in_second_round
        assert go()
    statement = told(tmp_path)
    # The killed round is made anew: its steps count again, beside what had been drawn before.
    at_least = max(at_the_kill.values()) + (rounds - 1) * STEPS
    assert statement["releases"]["dp-steps"] == max(counted(state).values()) >= at_least
    assert statement["epsilon"] == pytest.approx(
        epsilon_of(values, statement, statement["releases"]["dp-steps"])
    )
    assert statement["epsilon"] > epsilon_of(values, statement, rounds * STEPS)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_trunk_process_that_is_killed_in_mid_round_has_its_steps_counted(
    values, tmp_path, monkeypatch
):
    service = TrunkProcess(Path(values["model.name"]), tmp_path / "service.log", *_cuts(values))
    taken, killed, take = [0], list[int](), StepAccount.taking

    def taking(self):
        take(self)
        taken[0] += 1
        if not killed and taken[0] == SILOS * STEPS + 2:
            killed.append(service.process.pid)
            service.kill()
            service.start()

    monkeypatch.setattr(StepAccount, "taking", taking)
    try:
        statement = run({**values, "trunk.service": service.address}, tmp_path)
    finally:
        service.kill()
    assert killed and taken[0] > 2 * SILOS * STEPS
    assert sum(counted(tmp_path).values()) >= taken[0]
    steps = statement["releases"]["dp-steps"]
    assert steps == max(counted(tmp_path).values()) > 2 * STEPS
    assert statement["epsilon"] == pytest.approx(epsilon_of(values, statement, steps))


@pytest.mark.slow
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("mode", ["federated", "shared"])
def test_at_a_trunk_service_it_is_the_same_to_the_bit(values, tmp_path, monkeypatch, mode):
    # Both draw from the operating system, and so no two runs are alike but by this.
    known = SimpleNamespace(urandom=lambda count: bytes(range(count)))
    monkeypatch.setattr(secure_noise, "os", known)
    given = {**values, "trunk.adapters": mode}
    here = run(given, tmp_path / "here")
    with serving(given, amid_a_run=True) as service:
        there = run(at(service, given), tmp_path / "there")
    adapters = [
        (tmp_path / one / "output" / "adapter" / "adapter_model.safetensors").read_bytes()
        for one in ("here", "there")
    ]
    assert adapters[0] == adapters[1] and here == there and here["epsilon"] > 0


def _cuts(values):
    split = read_run_config(dict(values)).split
    return "--bottom", str(split.bottom_layers), "--top", str(split.top_layers)
