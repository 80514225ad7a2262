"""The optimizer's state over rounds: as if every silo of an uncut model kept its AdamW."""

import errno
import shutil

import pytest
import torch
from flwr.serverapp.strategy import FedAdam, FedAvg
from split_run import (
    TOLERANCE,
    failed_rounds,
    largest_difference,
    losing_replies,
    run_split,
)
from steps import KEEPING, SILOS, STEPS, run_config, steps_of
from tiny_checkpoint import save_tiny_model
from uncut_model import initial_arrays
from uncut_run import run_uncut, uncut_app

from flower_split.client.state.state_file import StateFile
from flower_split.config.run_config import read_run_config
from flower_split.errors import RoundError, StateError
from flower_split.strategies import TrunkHost
from flower_split.strategies.hosting.adapter_parts import to_arrays

ROUNDS = KEEPING["num-server-rounds"]
LORA = {"targets": KEEPING["lora.target-modules"]}
KEEPING_NOTHING = {"train.keep-optimizer": False}
INNER = {
    "fedavg": lambda nodes=SILOS: FedAvg(
        fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes
    ),
    "fedadam": lambda: FedAdam(fraction_evaluate=0.0, eta=1e-2, min_train_nodes=SILOS),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), "llama")


def config_of(folder, **changes):
    return run_config(folder, **{**KEEPING, **changes})


def uncut(folder, name="fedavg", *, losing=frozenset(), changes=None, **options):
    config = config_of(folder, **(changes or {}))
    app = uncut_app(folder, config=config, loras=LORA, losing=losing, **options)
    initial, tamper = initial_arrays(folder, **LORA), losing_replies(losing)
    result, _ = run_uncut(INNER[name](), app, initial, rounds=ROUNDS, tamper=tamper)
    return result.arrays.to_torch_state_dict()


def ran(folder, inner, initial=None, *, losing=frozenset(), changes=None, **options):
    """The result of a split run in which the replies in `losing`, and no others, are missing."""
    if losing:
        options |= {"tamper": losing_replies(losing), "timeout": 0.3}
    result, _ = run_split(config_of(folder, **(changes or {})), inner, initial, **options)
    assert failed_rounds(result) == set(losing)
    return result


def split(folder, name="fedavg", **options):
    result = ran(folder, INNER[name](), initial_arrays(folder, **LORA), **options)
    return result.arrays.to_torch_state_dict()


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key


def files(state_home):
    return sorted(path for path in state_home.rglob("*") if path.is_file())


@pytest.mark.exhaustive
def test_without_keeping_every_round_starts_afresh(folder, state_home):
    ours = split(folder, changes=KEEPING_NOTHING)
    assert largest_difference(ours, uncut(folder, changes=KEEPING_NOTHING)) <= TOLERANCE
    assert largest_difference(ours, uncut(folder)) > 100 * TOLERANCE
    assert not state_home.exists()


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("name", INNER)
def test_a_round_that_did_not_count_is_never_gone_on_from(folder, name):
    losing = {(1, 1), (0, 2)}
    ours = split(folder, name, losing=losing)
    assert largest_difference(ours, uncut(folder, name, losing=losing)) <= TOLERANCE


@pytest.mark.exhaustive
def test_a_silo_that_lost_its_file_and_its_trunk_start_afresh_together(folder, state_home):
    def lose(message, context):
        if (context.node_config["partition-id"], message.content["config"]["split.round"]) == (
            1,
            3,
        ):
            (own,) = state_home.glob("flower-split/optimizer/*/1-*")
            shutil.rmtree(own)

    ours = split(folder, before=lose)
    assert largest_difference(ours, uncut(folder, forgetting={(1, 3)})) <= TOLERANCE


@pytest.mark.exhaustive
def test_a_full_disk_costs_the_moments_and_no_round(folder, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StateFile, "write", full)
    ours = split(folder)
    assert "No space left on device" in caplog.text
    assert largest_difference(ours, uncut(folder, changes=KEEPING_NOTHING)) <= TOLERANCE


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("mode", ["federated", "shared", "frozen"])
def test_two_rounds_are_one_of_twice_the_steps_to_the_bit(folder, mode):
    """FedAvg of one silo with a constant learning rate changes nothing between two rounds."""

    def one_round(partition, _):
        halves = [steps_of(partition, number)[0] for number in (1, 2)]
        return [*halves[0], *halves[1]], 10

    def adapter(steps, rounds):
        changes = {
            "trunk.adapters": mode,
            "num-server-rounds": rounds,
            "strategy.min-nodes": 1,
        }
        return ran(folder, INNER["fedavg"](1), steps=steps, silos=1, changes=changes).adapter

    assert_equal(adapter(steps_of, 2), adapter(one_round, 1))
    assert STEPS > 1


class Resumed(TrunkHost):
    """A host in a new process, which resumes from what another one exported."""

    def __init__(self, config, states):
        super().__init__(config)
        self.origin_run_id = "7"
        self.states = states

    def begin(self, arrays, **options):
        arrays = super().begin(arrays, **options)
        self.load_session_states(self.states)
        return arrays


@pytest.mark.slow
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("mode", ["federated", "shared", "frozen"])
def test_a_restarted_server_goes_on_with_the_silos_halves(folder, mode, monkeypatch):
    # In a shared trunk the order of the silos matters, and Flower draws it.
    monkeypatch.setattr("random.sample", lambda population, k: sorted(population)[:k])
    changes = {"trunk.adapters": mode}
    config = read_run_config(config_of(folder, **changes))
    uninterrupted = ran(folder, INNER["fedavg"](), changes=changes).adapter

    def until_killed(partition, server_round):
        if server_round == ROUNDS:
            raise KeyboardInterrupt
        return steps_of(partition, server_round)

    with TrunkHost(config) as host:
        inner = INNER["fedavg"]()
        arrays = {}
        aggregate = inner.aggregate_train

        def remember(server_round, replies):
            outcome = aggregate(server_round, replies)
            arrays[server_round] = outcome[0]
            return outcome

        inner.aggregate_train = remember
        with pytest.raises((KeyboardInterrupt, RoundError)):
            ran(folder, inner, steps=until_killed, host=host, changes=changes)
        states = host.session_states()
        learned = host.adapter(arrays[ROUNDS - 1])
    silos = {state.silo: state.server_round for state in states if state.silo}
    assert silos == dict.fromkeys(map(str, range(SILOS)), ROUNDS - 1)

    monkeypatch.setattr("in_process_grid.RUN_ID", 8)
    monkeypatch.setattr("in_process_grid.FIRST_NODE", 200)
    start = to_arrays(learned)
    with Resumed(config, states) as host:
        resumed = ran(
            folder,
            INNER["fedavg"](),
            start,
            steps=lambda partition, _: steps_of(partition, ROUNDS),
            host=host,
            changes={**changes, "num-server-rounds": 1},
        )
    assert all(record.statistics["state-resumed"] for record in resumed.history)
    assert_equal(resumed.adapter, uninterrupted)


@pytest.mark.exhaustive
def test_states_of_another_mode_are_refused(folder):
    with TrunkHost(read_run_config(config_of(folder))) as host:
        ran(folder, INNER["fedavg"](), host=host)
        states = host.session_states()
    with (
        TrunkHost(read_run_config(config_of(folder, **{"trunk.adapters": "frozen"}))) as host,
        pytest.raises(StateError, match=r"another mode of trunk\.adapters"),
    ):
        host.load_session_states(states)


@pytest.mark.exhaustive
def test_nothing_is_left_of_a_run_that_ended(folder, state_home):
    seen = []
    split(folder, before=lambda *_: seen.extend(files(state_home)))
    assert seen
    assert files(state_home) == []


@pytest.mark.exhaustive
def test_a_second_run_on_the_same_host_starts_afresh(folder):
    config = read_run_config(config_of(folder))
    with TrunkHost(config) as host:
        once = ran(folder, INNER["fedavg"](), host=host).adapter
        again = ran(folder, INNER["fedavg"](), host=host).adapter
    assert_equal(again, once)


def test_two_silos_of_one_name_do_not_share_a_state(folder):
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=SILOS)
    values = config_of(folder, **{"num-server-rounds": 2})
    result, _ = run_split(values, inner, node_config={"silo": "north"})
    for server_round in (1, 2):
        records = result.of("train", server_round)
        assert [bool(record.failure) for record in records] == [False, True, True]
        assert "another node of this run is named 'north'" in records[1].failure
        assert "`silo` in its node config" in records[1].failure
