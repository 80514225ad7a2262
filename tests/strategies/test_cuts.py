"""Silos of different cuts in one run: as the unsplit run, whatever the strategy; hostile ones."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process_grid import FIRST_NODE, InProcessGrid
from split_run import TOLERANCE, failed_rounds, largest_difference, run_split
from steps import KEEPING, SILOS, run_config
from tiny_checkpoint import save_texts, save_tiny_model
from trunk_services import at, serving
from uncut_model import initial_arrays
from uncut_run import exchange_in, run_uncut, uncut_app

from flower_split.apps.client_app import app as ready_made
from flower_split.config.run_config import read_run_config
from flower_split.errors import (
    AdapterError,
    ConfigError,
    CutError,
    HandshakeError,
    RoundError,
    StateError,
)
from flower_split.server.grpc.server import TrunkServer
from flower_split.strategies import SplitStrategy, build_inner
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.local import InProcessTransport

LAYERS = 6
BOUNDS = {"split.max-bottom-layers": 2, "split.max-top-layers": 3}
NODES = [{}, {"bottom-layers": 2, "top-layers": 1}, {"bottom-layers": 2, "top-layers": 3}]
"""One silo with the fewest layers, one in between, one with the most."""
MIXED = [{"r": 2, "alpha": 4.0}, {"r": 4, "alpha": 16.0}, {"r": 6, "alpha": 6.0}]
LORA = {"targets": KEEPING["lora.target-modules"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama", layers=LAYERS)


def cut_config(folder, **changes):
    return run_config(folder, **{**BOUNDS, **changes})


def fedavg(nodes=SILOS):
    return FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)


def fedadam():
    return FedAdam(fraction_evaluate=0.0, eta=1e-2, min_train_nodes=SILOS)


def equal(ours, theirs):
    """To the bit, and in the same order."""
    assert list(ours) == list(theirs)
    for name, array in theirs.items():
        assert np.array_equal(ours[name].numpy(), array.numpy()), name


CASES = [
    *(
        (name, None, {})
        for name in ("flora", "ffalora", "scaffoldlora", "fedsalora", "fedexlora", "rolora")
    ),
    *((name, MIXED, {}) for name in ("flexlora", "hetlora", "flora")),
    ("fedavg", None, {"strategy.personal": "layers.1, layers.4"}),
    ("fedprox", None, {"strategy.proximal-mu": 0.5}),
]


@pytest.mark.medium
def test_a_round_of_different_cuts_is_that_of_one_cut_to_the_bit(folder, state_home):
    short = {"num-server-rounds": 1, "strategy.fraction-evaluate": 0.0}
    theirs, _ = run_split(run_config(folder, **short), fedavg())
    ours, _ = run_split(cut_config(folder, **short), fedavg(), node_config=NODES)
    assert failed_rounds(ours) == set()
    equal(ours.arrays, theirs.arrays)


@pytest.mark.slow
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize(("name", "loras", "changes"), CASES)
def test_a_run_of_different_cuts_equals_the_unsplit_one(
    folder, tmp_path, state_home, name, loras, changes
):
    values = cut_config(folder, **{"strategy.name": name}, **changes)
    config = read_run_config(values)
    initial = initial_arrays(folder, r=config.lora.r, alpha=config.lora.alpha)
    own = [{f"lora-{key}": v for key, v in lora.items()} for lora in loras or [{}] * SILOS]
    nodes = [{**cut, **lora} for cut, lora in zip(NODES, own, strict=True)]
    ours, _ = run_split(values, initial=initial, node_config=nodes)
    theirs, _ = run_uncut(
        build_inner(config.strategy, config.lora),
        uncut_app(
            folder,
            exchange_in(tmp_path / "state"),
            config=values,
            loras=[{"r": 4, "alpha": 8.0, **lora} for lora in loras or [{}] * SILOS],
        ),
        initial,
    )
    assert failed_rounds(ours) == set()
    assert list(ours.arrays) == list(theirs.arrays)
    mine, plain = ours.arrays.to_torch_state_dict(), theirs.arrays.to_torch_state_dict()
    assert largest_difference(mine, plain) <= TOLERANCE
    for server_round in (1, 2):
        assert ours.evaluate_metrics_clientapp[server_round]["eval-loss"] == pytest.approx(
            theirs.evaluate_metrics_clientapp[server_round]["eval-loss"], rel=1e-6
        )


@pytest.mark.slow
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("inner", [fedavg, fedadam])
def test_with_a_plain_strategy_it_equals_plain_flower(folder, inner):
    initial = initial_arrays(folder, **LORA)
    ours, _ = run_split(cut_config(folder, **KEEPING), inner(), initial, node_config=NODES)
    app = uncut_app(folder, config=run_config(folder, **KEEPING), loras=LORA)
    theirs, _ = run_uncut(inner(), app, initial, rounds=KEEPING["num-server-rounds"])
    assert failed_rounds(ours) == set()
    mine, plain = ours.arrays.to_torch_state_dict(), theirs.arrays.to_torch_state_dict()
    assert list(mine) == list(plain)
    assert largest_difference(mine, plain) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize(
    "changes",
    [
        {"trunk.adapters": "frozen"},
        {"strategy.name": "flora", "trunk.adapters": "frozen"},
        {"strategy.name": "fedavglora", "trunk.recompute": True},
        {"peft.type": "ADALORA", "peft.total-step": 18, "peft.tinit": 2, "peft.tfinal": 6},
        {"peft.use-dora": True},
        {"peft.type": "VERA"},
    ],
)
def test_it_is_the_run_of_one_cut_to_the_bit(folder, state_home, changes):
    if "peft.type" in changes:  # whose settings are under peft
        changes = {"lora.r": 8, "lora.alpha": 16, **changes}
    theirs, _ = run_split(run_config(folder, **{**KEEPING, **changes}))
    ours, _ = run_split(cut_config(folder, **{**KEEPING, **changes}), node_config=NODES)
    assert failed_rounds(ours) == failed_rounds(theirs) == set()
    equal(ours.arrays, theirs.arrays)
    assert list(ours.adapter) == list(theirs.adapter)


@pytest.mark.exhaustive
def test_silos_at_once_and_without_sockets_give_the_same(folder, state_home, monkeypatch):
    values = cut_config(folder, **KEEPING, **{"trunk.max-activation-tokens": 40})
    values |= {"train.batch-size": 3, "train.max-length": 9}
    one_by_one, _ = run_split(values, fedavg(), node_config=NODES)
    at_once, _ = run_split(values, fedavg(), node_config=NODES, threads=SILOS)
    equal(at_once.arrays, one_by_one.arrays)
    backends = []

    class WithoutSocket(TrunkServer):
        def __init__(self, backend, *args, **kwargs):
            super().__init__(backend, *args, **kwargs)
            backends.append(backend)

    def connect(address, spec, ticket, **_):
        return InProcessTransport(backends[-1], spec, ticket)

    monkeypatch.setattr("flower_split.strategies.hosting.in_process.TrunkServer", WithoutSocket)
    in_process, _ = run_split(values, fedavg(), node_config=NODES, connect=connect)
    equal(in_process.arrays, one_by_one.arrays)
    assert failed_rounds(one_by_one) == failed_rounds(at_once) == failed_rounds(in_process) == set()


def moving(table):
    """For `run_split`: silos come with other cuts in single rounds, by (partition, round)."""

    def before(message, context):
        place = context.node_config["partition-id"], message.content["config"]["split.round"]
        for key in ("bottom-layers", "top-layers"):
            context.node_config.pop(key, None)
        context.node_config.update(table.get(place, {}))

    return before


@pytest.mark.exhaustive
def test_moments_start_afresh_where_a_silo_moves_its_cut(folder, state_home, caplog):
    """Wider, and narrower again; the silo whose cut stays keeps them."""
    values = cut_config(folder, **{**KEEPING, "num-server-rounds": 4})
    table = {(1, 2): NODES[1], (2, 1): NODES[2], (2, 2): NODES[2]}
    initial = initial_arrays(folder, **LORA)
    ours, _ = run_split(values, fedavg(), initial, before=moving(table))
    app = uncut_app(folder, config=values, loras=LORA, forgetting={(1, 2), (1, 3), (2, 3)})
    theirs, _ = run_uncut(fedavg(), app, initial, rounds=4)
    assert failed_rounds(ours) == set()
    mine, plain = ours.arrays.to_torch_state_dict(), theirs.arrays.to_torch_state_dict()
    assert largest_difference(mine, plain) <= TOLERANCE
    assert "silo '1' has moved its cuts from (1, 1) to (2, 1)" in caplog.text


@pytest.mark.exhaustive
def test_personal_tensors_of_moved_layers_cost_the_silo_one_round(folder, state_home):
    values = cut_config(folder, **{"strategy.name": "fedsalora", "num-server-rounds": 3})
    values["strategy.fraction-evaluate"] = 0.0
    ours, _ = run_split(values, before=moving({(1, 2): NODES[1], (1, 3): NODES[1]}))
    assert failed_rounds(ours) == {(1, 2)}
    assert any("personal tensors of this silo" in record.failure for record in ours.history)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_moments_of_every_cut(folder, state_home, tmp_path):
    values = cut_config(folder, **KEEPING, **{"output-dir": str(tmp_path / "out")})
    whole, _ = run_split(
        {**values, "output-dir": str(tmp_path / "whole")}, fedavg(), node_config=NODES
    )
    run_split({**values, "num-server-rounds": 2}, fedavg(), node_config=NODES)
    resumed = {**values, "resume": True}
    ours, _ = run_split(resumed, fedavg(), node_config=NODES)
    equal(ours.arrays, whole.arrays)
    assert all(r.statistics["state-resumed"] for r in ours.of("train", 3))
    with pytest.raises(StateError, match=r"split\.max-top-layers was 3 and is 2 now"):
        run_split({**resumed, "split.max-top-layers": 2}, fedavg())


@pytest.mark.slow
def test_a_trunk_service_serves_such_a_run(folder, state_home):
    values = cut_config(folder, **KEEPING)
    theirs, _ = run_split(values, fedavg(), node_config=NODES)
    with serving(values, amid_a_run=True) as server:
        ours, _ = run_split(at(server, values), fedavg(), node_config=NODES)
        equal(ours.arrays, theirs.arrays)
        given = at(server, values, **{"model.delivery": "server"})
        with pytest.raises(HandshakeError, match=r"model\.delivery: the service gives silos"):
            run_split(given, fedavg(), node_config=NODES)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return save_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl")


def ready_run(folder, texts, *, threads=1, **changes):
    """A run of the ready-made apps' ClientApp."""
    values = {
        **run_config(folder, **KEEPING, **{"strategy.name": "fedavg", "data.path": str(texts)}),
        **{"data.prompt": "prompt", "train.batch-size": 2, "train.max-length": 64},
        **changes,
    }
    config = read_run_config(values)
    grid = InProcessGrid(ready_made, SILOS, run_config=values, threads=threads)
    return SplitStrategy(config, build_inner(config.strategy, config.lora)).start(grid)


IN_TURN = {**BOUNDS, "split.bottoms": "1, 2", "split.tops": "3, 1"}


@pytest.mark.slow
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("delivery", ["local", "server"])
def test_simulated_silos_have_their_cuts_in_turn(
    folder, texts, state_home, tmp_path, monkeypatch, delivery
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    theirs = ready_run(folder, texts)
    ours = ready_run(folder, texts, **IN_TURN, **{"model.delivery": delivery})
    equal(ours.arrays, theirs.arrays)
    shares = {r.silo: r.statistics["parameter-share"] for r in ours.of("train", 1)}
    assert shares["0"] == shares["2"] > shares["1"]


@pytest.mark.exhaustive
def test_silos_of_one_cut_share_batches_beside_those_of_another(folder, texts, state_home):
    steps = {"train.local-steps": 12, "train.batch-size": 2}
    cuts = {**BOUNDS, "split.bottoms": "2, 2, 1"}
    together = {"trunk.batching": True, "trunk.gather-ms": 100.0}
    theirs = ready_run(folder, texts, **steps)
    ours = ready_run(folder, texts, threads=SILOS, **steps, **cuts, **together)
    mine, plain = ours.arrays.to_torch_state_dict(), theirs.arrays.to_torch_state_dict()
    assert largest_difference(mine, plain) <= 1e-3
    trained = [record for record in ours.history if record.purpose == "train"]
    shared = {silo: set() for silo in ("0", "1", "2")}
    for record in trained:
        shared[record.silo].add(record.statistics["batch-occupancy"])
    assert shared["2"] == {1}
    assert max(shared["0"] | shared["1"]) > 1


CUTS = st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(lambda cut: sum(cut) < LAYERS)


@pytest.mark.exhaustive
@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(CUTS, min_size=2, max_size=3), frozen=st.booleans())
def test_any_cuts_give_the_run_of_one_cut(folder, cuts, frozen):
    fewest = [min(cut[end] for cut in cuts) for end in (0, 1)]
    most = [max(cut[end] for cut in cuts) for end in (0, 1)]
    values = {
        "split.bottom-layers": fewest[0],
        "split.top-layers": fewest[1],
        "trunk.adapters": "frozen" if frozen else "federated",
        "strategy.fraction-evaluate": 0.0,
        "strategy.min-nodes": len(cuts),
    }
    nodes = [{"bottom-layers": bottom, "top-layers": top} for bottom, top in cuts]
    bounds = {"split.max-bottom-layers": most[0], "split.max-top-layers": most[1]}
    ran = {"inner": fedavg(len(cuts)), "silos": len(cuts)}
    if sum(most) >= LAYERS:
        with pytest.raises(CutError, match="leaves none for the trunk"):
            run_split(run_config(folder, **values, **bounds), **ran)
        return
    if frozen and not sum(fewest):  # nothing would be trained
        return
    theirs, _ = run_split(run_config(folder, **values), **ran)
    ours, _ = run_split(run_config(folder, **values, **bounds), node_config=nodes, **ran)
    assert failed_rounds(ours) == set()
    equal(ours.arrays, theirs.arrays)


HOSTILE = 1
WITHOUT_IT = {
    "strategy.min-replies": 2,
    "strategy.fraction-evaluate": 0.0,
    "num-server-rounds": 1,
    "strategy.name": "fedavg",
}


def run_hostile(folder, state_home, **options):
    """A run of one round whose second silo is hostile; what its failure says."""
    result, _ = run_split(cut_config(folder, **WITHOUT_IT), **options)
    assert failed_rounds(result) == {(HOSTILE, 1)}
    (failure,) = [record.failure for record in result.history if record.failure]
    return failure


def alone(folder):
    """The same run in which that silo only fails."""

    def failing(message, context):
        if context.node_config["partition-id"] == HOSTILE:
            raise OSError("no disk")

    return run_split(cut_config(folder, **WITHOUT_IT), node_config=NODES, before=failing)[0]


@pytest.mark.medium
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (
            {"bottom_layers": 0},
            "bottom_layers: silos of this run may hold 1 to 2, and the silo has 0",
        ),
        ({"bottom_layers": 3}, "may hold 1 to 2, and the silo has 3"),
        ({"top_layers": 4}, "may hold 1 to 3, and the silo has 4"),
        ({"bottom_layers": 2**32 - 1}, "may hold 1 to 2, and the silo has 4294967295"),
        ({"num_layers": 7}, "differ in num_layers"),
        ({"trunk_adapters": "frozen"}, "differ in trunk_adapters"),
    ],
)
def test_a_session_of_another_cut_costs_its_silo_alone(folder, state_home, cut, said):
    def connect(address, spec, ticket, **options):
        wanted = replace(spec, **cut) if spec.silo == str(HOSTILE) else spec
        return GrpcTransport(address, wanted, ticket, **options)

    assert said in run_hostile(folder, state_home, node_config=NODES, connect=connect)


@pytest.mark.medium
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"bottom-layers": 3}, "silos of this run may hold 1 to 2"),
        ({"bottom-layers": 0}, "silos of this run may hold 1 to 2"),
        ({"top-layers": -1}, "top-layers -1: expected 0 or more layers"),
        ({"top-layers": 99}, "silos of this run may hold 1 to 3"),
        ({"top-layers": "2"}, "top-layers '2': expected a whole number"),
        ({"bottom-layers": True}, "bottom-layers True: expected a whole number"),
        ({"bottom_layers": 2}, "did you mean 'bottom-layers'"),
    ],
)
def test_a_node_config_outside_of_the_bounds_costs_its_silo_alone(folder, state_home, node, said):
    assert said in run_hostile(folder, state_home, node_config=[{}, node, {}])


def replying(change):
    """For `InProcessGrid`: one silo's tensors are changed on their way; `change` gets and gives a
    dict of arrays."""

    def tamper(reply):
        if reply.metadata.src_node_id == FIRST_NODE + HOSTILE and not reply.has_error():
            ((name, arrays),) = reply.content.array_records.items()
            reply.content[name] = ArrayRecord(change(dict(arrays.items())))
        return [reply]

    return tamper


def of_layer(arrays, layer):
    return [name for name in arrays if f".layers.{layer}." in name]


def without(layer):
    return lambda arrays: {n: a for n, a in arrays.items() if n not in of_layer(arrays, layer)}


def renamed(layer, other):
    """The tensors of a layer, under the names of another one as well."""

    def change(arrays):
        further = {
            n.replace(f".{layer}.", f".{other}."): arrays[n] for n in of_layer(arrays, layer)
        }
        return {**arrays, **further}

    return change


def reshaped(arrays):
    (name, *_) = of_layer(arrays, 1)
    return {**arrays, name: Array(np.zeros((1, 1), np.float32))}


@pytest.mark.medium
@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without(1), "8 tensors missing"),  # its own by its choice
        (renamed(1, 3), "8 unknown"),  # the trunk's of every silo
        (renamed(1, 4), "8 unknown"),  # the trunk's of this silo, and another one's own
        (without(0), "8 tensors missing"),
        (renamed(0, 9), "8 unknown"),  # nobody's
        (lambda _: {}, "24 tensors missing"),
        (reshaped, "has shape (1, 1), expected"),
    ],
)
def test_a_reply_that_is_not_the_rest_of_its_session_costs_its_silo_alone(
    folder, state_home, change, said
):
    failure = run_hostile(folder, state_home, node_config=NODES, tamper=replying(change))
    assert said in failure


@pytest.mark.exhaustive
def test_what_is_left_of_the_round_is_as_if_it_had_failed(folder, state_home):
    result, _ = run_split(
        cut_config(folder, **WITHOUT_IT), node_config=NODES, tamper=replying(without(1))
    )
    equal(result.arrays, alone(folder).arrays)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (
            {"split.max-bottom-layers": 3, "split.max-top-layers": 3},
            CutError,
            "3 bottom and 3 top layers .* of the model's 6, which leaves none for the trunk",
        ),
        (
            {"split.max-bottom-layers": 2**31, "split.max-top-layers": 0},
            CutError,
            "leaves none for the trunk",
        ),
        (
            {"lora.target-modules": "layers.1.mlp.up_proj, layers.0.mlp.up_proj"},
            AdapterError,
            "none of the trunk's layers has a module",
        ),
    ],
)
def test_bounds_that_leave_the_trunk_nothing_are_refused_at_the_start(folder, changes, error, said):
    with pytest.raises(error, match=said):
        run_split(cut_config(folder, **changes))


def test_a_trunk_that_is_shared_is_refused(folder):
    with pytest.raises(ConfigError, match=r"trunk\.adapters 'shared' has one adapter"):
        read_run_config(cut_config(folder, **{"trunk.adapters": "shared"}))


@pytest.mark.medium
def test_without_bounds_no_silo_gets_what_the_trunk_holds(folder, state_home):
    """And a silo that asks for more layers all the same is told that there is no choice."""
    values = run_config(folder, **WITHOUT_IT)
    result, grid = run_split(values, node_config=[{}, {"bottom-layers": 2}, {}])
    assert failed_rounds(result) == {(HOSTILE, 1)}
    assert "silos of this run may hold 1 only" in str([r.failure for r in result.history])
    for message in grid.sent:
        ((_, arrays),) = message.content.array_records.items()
        assert {int(name.split(".layers.")[1].split(".")[0]) for name in arrays} == {0, 5}


def test_a_round_without_any_silo_in_bounds_says_so_once(folder, state_home):
    with pytest.raises(
        RoundError, match=r"failed on every silo asked:\n- nodes .* may hold 1 to 2"
    ):
        run_split(cut_config(folder, **WITHOUT_IT), node_config=[{"bottom-layers": 3}] * SILOS)
