"""Runs at a trunk service: equal to the bit to runs that host their trunk, and to one another."""

from threading import Thread

import numpy as np
import pytest
from cutting_relay import CuttingRelay
from steps import KEEPING, run_config
from tiny_checkpoint import save_tiny_model
from trunk_services import at, learned, serving

from flower_split.config.run_config import read_run_config
from flower_split.control.run_bounds import RunBounds
from flower_split.errors import (
    AdapterError,
    ConfigError,
    HandshakeError,
    TrunkBusyError,
    TrunkUnavailableError,
)
from flower_split.server.compute import scheduler
from flower_split.strategies import TrunkHost

CHANGES = [
    KEEPING,
    {"trunk.adapters": "shared"},
    {"trunk.adapters": "frozen"},
    {"strategy.name": "fedadam"},
    {"strategy.name": "scaffoldlora"},
    {"strategy.name": "flora"},
    {"model.delivery": "server"},
    {"peft.use-dora": True},
    {"trunk.adapters": "federated", "peft.type": "IA3"},
    {
        "trunk.adapters": "frozen",
        "train.max-length": 128,
        "peft.num-virtual-tokens": 3,
        "peft.type": "PREFIX_TUNING",
    },
]
OTHER = {"lora.r": 2, "train.learning-rate": 1e-2, "seed": 5, "lora.target-modules": "q_proj"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def service(folder):
    with serving(run_config(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def on_two(folder, service):
    """A service whose trunk has a device for each layer, beside the other one."""
    with serving(run_config(folder), devices="cpu, cpu", amid_a_run=True) as server:
        yield server


def values_of(folder, changes):
    """Of a run of that method."""
    values = run_config(folder, **changes)
    if "peft.type" in changes:
        values = {key: value for key, value in values.items() if not key.startswith("lora.")}
    return values


def same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert np.array_equal(ours[name], tensor), name


@pytest.mark.medium
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize(
    "changes", CHANGES, ids=lambda changes: str(next(reversed(changes.values())))
)
def test_a_run_yields_what_it_yields_with_a_trunk_of_its_own(folder, service, changes):
    values = values_of(folder, changes)
    same(learned(at(service, values)), learned(values))
    assert service.runs.all == []


@pytest.mark.medium
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize(
    "changes",
    [*CHANGES, {"trunk.recompute": True}],
    ids=lambda changes: str(next(reversed(changes.values()))),
)
def test_a_trunk_over_two_devices_yields_the_same(folder, on_two, changes):
    values = values_of(folder, changes)
    same(learned(at(on_two, values)), learned(values))
    assert on_two.runs.all == []


@pytest.mark.medium
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("devices", ["cpu, cpu", "cpu"])
def test_a_service_without_room_for_activations_computes_them_anew(folder, monkeypatch, devices):
    monkeypatch.setattr(scheduler, "_ROOM_SECONDS", 0.01)
    values = run_config(folder, **{**KEEPING, "num-server-rounds": 1})
    bounds = RunBounds(max_activation_bytes=1)
    with serving(values, bounds=bounds, devices=devices) as service:
        same(learned(at(service, values)), learned(values))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["service", "on_two"])
def test_two_runs_at_once_yield_what_each_yields_alone(folder, place, request):
    """Other plans, modes and constants, on one copy of the weights."""
    service = request.getfixturevalue(place)
    first = at(service, run_config(folder, **KEEPING))
    second = at(service, run_config(folder, **OTHER, **{"trunk.adapters": "shared"}))
    alone = learned(first), learned(second)
    together = {}
    threads = [
        Thread(target=lambda n=n, values=values: together.update({n: learned(values)}))
        for n, values in enumerate((first, second))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, theirs in enumerate(alone):
        same(together[number], theirs)


@pytest.mark.slow
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("place", ["before", "middle"])
def test_answers_that_are_lost_on_their_way_change_nothing(folder, service, place):
    """Every fifth one: whatever it answers was done, and is asked for again."""
    values = run_config(folder, **KEEPING)

    def cut(message):
        return place if (message.direction, message.number) == ("down", 4) else None

    with CuttingRelay(service.control_address, cut) as relay:
        ours = learned({**values, "trunk.service": relay.address})
    assert relay.connections > 5
    same(ours, learned(values))


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"split.bottom-layers": 2}, HandshakeError, r"split\.bottom-layers: the service has 1"),
        ({"model.name": "other"}, HandshakeError, r"model\.name: the service has"),
        ({"trunk.max-sessions": 65}, ConfigError, "--max-sessions"),
        ({"lora.target-modules": "nowhere"}, AdapterError, "nowhere"),
        ({"peft.init-lora-weights": "pissa"}, ConfigError, "gives those to nobody"),
    ],
)
def test_what_the_service_does_not_have_is_refused(folder, service, changes, kind, said):
    config = read_run_config(at(service, run_config(folder, **changes)))
    with pytest.raises(kind, match=said), TrunkHost(config):
        pass
    assert service.runs.all == []


@pytest.mark.medium
def test_a_run_beyond_the_bound_waits_for_another_one_to_end(folder):
    values = run_config(folder)
    with serving(values, bounds=RunBounds(max_runs=1)) as server:
        config = read_run_config(at(server, values))
        with TrunkHost(config), pytest.raises(TrunkBusyError, match="--max-runs"):
            TrunkHost(config).__enter__()
        with TrunkHost(config):
            pass


def test_a_service_that_is_not_there_is_named(folder, monkeypatch):
    monkeypatch.setattr("flower_split.control.service_trunk.FIRST_PATIENCE", 0.5)
    config = read_run_config(run_config(folder, **{"trunk.service": "127.0.0.1:9"}))
    with pytest.raises(TrunkUnavailableError, match="flower-split trunk serve"), TrunkHost(config):
        pass
