"""Silos of a split run that differ in rank, keep tensors for themselves, or lie."""

import re

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping
from in_process_grid import FIRST_NODE
from split_run import losing_replies, run_split
from steps import run_config
from tiny_checkpoint import save_tiny_model

from flower_split.adapters import AdapterRound
from flower_split.apps import server_run
from flower_split.config.model import LoraSettings
from flower_split.errors import ConfigError, RoundError
from flower_split.lowrank import LORA_RECORD, is_folded, part_of
from flower_split.strategies import Alone, FLoRA, TrunkHost

MIXED = [{"r": 2, "alpha": 4.0}, {"r": 4, "alpha": 16.0}, {"r": 6, "alpha": 6.0}]
MODES = ["federated", "shared", "frozen"]
TRUNK = ("layers.1.", "layers.2.")
LORA = LoraSettings(r=4, alpha=8.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def run(folder, state_home):
    def run_one(name, *, mode="federated", changes=None, **options):
        values = run_config(folder, **{"strategy.name": name, "trunk.adapters": mode})
        return run_split({**values, **(changes or {})}, **options)

    return run_one


def is_trunk(name):
    return any(layer in name for layer in TRUNK)


def failures(result):
    return {r.node_id - FIRST_NODE: r.failure for r in result.of("train", 1) if r.failure}


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", MODES)
def test_mixed_ranks_and_folded_factors_in_every_mode(run, mode):
    result, _ = run("flora", mode=mode, loras=MIXED)
    assert not any(record.failure for record in result.history)
    names = set(result.adapter)
    assert any(map(is_folded, names))
    assert any(map(is_trunk, names)) == (mode != "frozen")
    assert any(is_trunk(n) and is_folded(n) for n in names) == (mode == "federated")
    assert set(result.evaluate_metrics_clientapp) == {1, 2}
    if mode == "shared":
        # The trunk's one adapter has the run's rank, whatever the silos have.
        assert {
            t.shape[0] for n, t in result.adapter.items() if is_trunk(n) and ".lora_A." in n
        } == {4}


@pytest.mark.exhaustive
def test_silos_of_different_ranks_at_once_do_not_disturb_each_other(run):
    one_by_one, _ = run("flora", loras=MIXED)
    at_once, _ = run("flora", loras=MIXED, threads=3)
    for name, array in one_by_one.arrays.items():
        assert (array.numpy() == at_once.arrays[name].numpy()).all(), name


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "changes", "is_own"),
    [
        ("fedsalora", {}, lambda name: part_of(name) == "B"),
        ("fedavg", {"strategy.personal": "layers.0, layers.3"}, lambda n: not is_trunk(n)),
    ],
)
def test_what_a_silo_keeps_of_its_layers_is_in_no_message_to_the_server(
    run, mode, name, changes, is_own, state_home
):
    if mode != "federated":
        changes = dict.fromkeys(changes, "layers.0")
        is_own = is_own if name == "fedsalora" else lambda n: "layers.0." in n
    replies = []

    def tamper(reply):
        if reply.metadata.message_type != "query":  # where the order matters, silos tell names
            replies.append(reply)
        return [reply]

    result, grid = run(name, mode=mode, changes=changes, tamper=tamper)
    assert not any(record.failure for record in result.history)
    assert len(replies) == 12
    for reply in replies:
        arrays = [n for record in reply.content.array_records.values() for n in record]
        assert not any(map(is_own, arrays))
        assert not any(map(is_trunk, arrays))
    asked = [m for m in grid.sent if m.metadata.message_type != "query"]
    second = [m for m in asked if m.content["config"]["split.round"] == 2]
    assert len(second) == 6
    assert not any(is_own(n) for m in second for n in m.content["arrays"])
    files = [p for p in state_home.rglob("*.safetensors") if "/adapter/" in str(p)]
    assert len(files) >= 3


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", MODES)
def test_a_rank_that_the_strategy_cannot_take_costs_its_silo_and_no_other(run, mode):
    result, _ = run("fedexlora", mode=mode, loras=[{}, {"r": 2}, {}])
    ((silo, reason),) = failures(result).items()
    assert silo == 1
    assert "the silo has lora.r 2, the run lora.r 4, and fedexlora" in reason
    assert "'flora' aggregates updates of any ranks exactly" in reason


@pytest.mark.exhaustive
def test_a_rank_above_the_bound_costs_its_silo(run):
    result, _ = run("flora", changes={"lora.max-r": 5}, loras=MIXED)
    assert "silos of this run may have 5 at most" in failures(result)[2]


def lies(partition, change):
    """Tampers with the training replies of one silo."""

    def tamper(reply):
        if reply.metadata.src_node_id == FIRST_NODE + partition and "arrays" in reply.content:
            change(reply.content)
        return [reply]

    return tamper


def tells_another_alpha(content):
    content[LORA_RECORD] = ConfigRecord({**dict(content[LORA_RECORD].items()), "alpha": 4000.0})


def sends_another_rank(content):
    content[LORA_RECORD] = ConfigRecord({**dict(content[LORA_RECORD].items()), "r": 3})
    content["arrays"] = ArrayRecord(
        {
            n: Array(a.numpy()[:3].copy() if part_of(n) == "A" else a.numpy()[:, :3].copy())
            for n, a in content["arrays"].items()
        }
    )


def sends_a_trunk_tensor(content):
    name = next(iter(content["arrays"])).replace("layers.0.", "layers.1.")
    content["arrays"] = ArrayRecord(
        {**dict(content["arrays"].items()), name: next(iter(content["arrays"].values()))}
    )


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (tells_another_alpha, "lora.alpha 4000.* was opened for one with .*lora.alpha 16"),
        (sends_another_rank, "lora.r 3, .* was opened for one with lora.r 4"),
        (sends_a_trunk_tensor, "1 unknown"),
    ],
)
def test_a_reply_that_contradicts_its_session_does_not_count(run, change, said):
    result, _ = run("flora", loras=MIXED, tamper=lies(1, change))
    ((silo, reason),) = failures(result).items()
    assert silo == 1
    assert re.search(said, reason)


def test_neither_half_goes_on_from_a_round_that_did_not_count(run, monkeypatch):
    """Silo 1's second reply is lost: its third session resumes from what the first has left."""
    left, loaded = [], []
    personal, load = AdapterRound.personal, AdapterRound.load

    def spy_personal(self):
        left.append(personal(self))
        return left[-1]

    def spy_load(self, received, before=None):
        loaded.append(before)
        return load(self, received, before)

    monkeypatch.setattr(AdapterRound, "personal", spy_personal)
    monkeypatch.setattr(AdapterRound, "load", spy_load)
    order = []

    def before(message, context):
        fields = message.content["config"]
        order.append((context.node_config["partition-id"], fields["split.round"]))

    changes = {"strategy.fraction-evaluate": 0.0, "num-server-rounds": 3, "round-timeout": 2.0}
    tamper = losing_replies({(1, 2)})
    result, _ = run("fedsalora", changes=changes, tamper=tamper, before=before)
    assert [r.server_round for r in result.history if r.failure] == [2]
    assert len(loaded) == len(left) == 2 * len(order) == 18
    for number in range(2):  # the trunk's half and the silo's of every session
        went_on_from = loaded[2 * order.index((1, 3)) + number].tensors
        for server_round, same in ((1, True), (2, False)):
            were = left[2 * order.index((1, server_round)) + number].tensors
            assert all((went_on_from[n] == t).all() == same for n, t in were.items())


@pytest.mark.slow
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("name", ["scaffoldlora", "fedsalora"])
def test_a_run_that_is_resumed_ends_as_one_that_was_not_interrupted(run, tmp_path, name):
    changes = {"num-server-rounds": 3, "train.keep-optimizer": True}
    whole, _ = run(name, changes={**changes, "output-dir": str(tmp_path / "whole")})
    changes |= {"output-dir": str(tmp_path / "parts"), "resume": True}

    def killed(message, context):
        fields = message.content["config"]
        if fields["split.round"] == 3 and context.node_config["partition-id"] == 2:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, RoundError)):
        run(name, changes=changes, before=killed)
    resumed, _ = run(name, changes=changes)
    assert list(resumed.arrays) == list(whole.arrays)
    for key, array in whole.arrays.items():
        assert (array.numpy() == resumed.arrays[key].numpy()).all(), key
    losses = [r.evaluate_metrics_clientapp[3]["eval-loss"] for r in (whole, resumed)]
    assert losses[0] == losses[1]


@pytest.mark.exhaustive
def test_every_silo_alone_keeps_its_own_rank(run):
    result, grid = run("fedavg", loras=MIXED, inner=Alone(min_nodes=3, lora=LORA))
    assert not any(record.failure for record in result.history)
    last = {m.metadata.dst_node_id: m.content["arrays"] for m in grid.sent}
    ranks = [min(min(a.shape) for a in last[FIRST_NODE + i].values()) for i in range(3)]
    assert ranks == [lora["r"] for lora in MIXED]


def test_what_the_strategy_cannot_do_is_said_before_any_model_is_loaded(monkeypatch):
    def load(*_):
        raise AssertionError("the trunk was loaded")

    monkeypatch.setattr(TrunkHost, "__enter__", load)
    wrapper = DifferentialPrivacyServerSideFixedClipping(FLoRA(), 0.1, 0.1, 2)
    monkeypatch.setattr(server_run, "build_inner", lambda *_: wrapper)
    with pytest.raises(ConfigError, match="FLoRA they are not the same"):
        server_run.serve_run(None, {"model.name": "none"})
