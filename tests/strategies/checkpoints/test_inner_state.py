"""2N rounds of every strategy of Flower's equal N rounds, a checkpoint, and N rounds."""

import gc
import json
import random
import threading

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from in_process_grid import InProcessGrid

from flower_split.checkpoint import Checkpoint
from flower_split.checkpoint.archive import read_checkpoint, write_checkpoint
from flower_split.checkpoint.kinds import global_randomness, restore_global_randomness
from flower_split.errors import StateError
from flower_split.strategies import Alone
from flower_split.strategies.checkpoints.inner_state import InnerState

NODES, ROUNDS = 5, 3
PART = {"fraction_train": 0.8, "fraction_evaluate": 0.6}

STRATEGIES = {
    "Bulyan": lambda: flower.Bulyan(num_malicious_nodes=0),
    "DifferentialPrivacyClientSideAdaptiveClipping": lambda: (
        flower.DifferentialPrivacyClientSideAdaptiveClipping(flower.FedAdam(), 0.2, NODES)
    ),
    "DifferentialPrivacyClientSideFixedClipping": lambda: (
        flower.DifferentialPrivacyClientSideFixedClipping(flower.FedAvg(), 0.5, 0.3, NODES)
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": lambda: (
        flower.DifferentialPrivacyServerSideAdaptiveClipping(flower.FedYogi(), 0.2, NODES)
    ),
    "DifferentialPrivacyServerSideFixedClipping": lambda: (
        flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvgM(), 0.5, 0.3, NODES)
    ),
    "FedAdagrad": lambda: flower.FedAdagrad(**PART),
    "FedAdam": lambda: flower.FedAdam(**PART),
    "FedAvg": lambda: flower.FedAvg(**PART),
    "FedAvgM": lambda: flower.FedAvgM(server_momentum=0.7, server_learning_rate=0.5, **PART),
    "FedMedian": lambda: flower.FedMedian(**PART),
    "FedProx": lambda: flower.FedProx(proximal_mu=0.1, **PART),
    "FedTrimmedAvg": lambda: flower.FedTrimmedAvg(**PART),
    "FedXgbBagging": lambda: flower.FedXgbBagging(),
    "FedXgbCyclic": lambda: flower.FedXgbCyclic(),
    "FedYogi": lambda: flower.FedYogi(**PART),
    "Krum": lambda: flower.Krum(num_malicious_nodes=1, **PART),
    "MultiKrum": lambda: flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2, **PART),
    "QFedAvg": lambda: flower.QFedAvg(0.1, train_loss_key="train-loss", **PART),
    "Alone": lambda: Alone(min_nodes=NODES),
}


@pytest.fixture(autouse=True)
def quick_collections():
    """Some strategies collect garbage for every reply: let that not look at all of torch."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_every_built_in_strategy_is_here():
    assert STRATEGIES.keys() == {*flower.__all__, "Alone"} - {"Result", "Strategy"}


def answer(message, context):
    """A silo that learns something of its own in every round."""
    partition = context.node_config["partition-id"]
    server_round = message.content["config"]["server-round"]
    rng = np.random.Generator(np.random.PCG64([partition, server_round]))
    content = RecordDict()
    metrics = {"num-examples": 3 + partition, "norm_bit": partition % 2}
    if message.metadata.message_type == "train":
        arrays = message.content["arrays"]
        content["arrays"] = ArrayRecord(
            {
                name: Array(
                    array.numpy() + rng.normal(size=array.shape).astype(np.float32)
                    if "0" not in arrays
                    else tree(rng)
                )
                for name, array in arrays.items()
            }
        )
    content["metrics"] = MetricRecord({**metrics, "train-loss": float(rng.random())})
    return Message(content, reply_to=message)


def tree(rng):
    """A gradient-boosted tree as XGBoost writes it, with what bagging reads of it."""
    trees = {
        "gbtree_model_param": {"num_trees": "1", "num_parallel_tree": "1"},
        "iteration_indptr": [0, 1],
        "trees": [{"id": 0, "leaf": float(rng.random())}],
        "tree_info": [0],
    }
    model = {"learner": {"gradient_booster": {"model": trees}}}
    return np.frombuffer(json.dumps(model).encode(), np.uint8)


def start_arrays(name):
    if name.startswith("FedXgb"):
        return ArrayRecord({"0": Array(np.zeros(0, np.uint8))})
    rng = np.random.Generator(np.random.PCG64(1))
    shapes = {"a": (3, 4), "b": (5,), "c": (1,)}
    return ArrayRecord(
        {k: Array(np.asarray(rng.normal(size=s), np.float32)) for k, s in shapes.items()}
    )


def make_grid(first_node):
    app = ClientApp()
    app.train()(answer)
    app.evaluate()(answer)
    return InProcessGrid(app, NODES, node_ids=range(first_node, first_node + NODES))


def asked(grid, messages):
    replies = grid.send_and_receive(messages)
    assert len(replies) == len(messages)
    assert not [reply.error.reason for reply in replies if reply.has_error()]
    return replies


def play(strategy, grid, arrays, rounds):
    told = []
    for number in rounds:
        messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        told.append(sorted(m.metadata.dst_node_id - min(grid.contexts) for m in messages))
        new, metrics = strategy.aggregate_train(number, asked(grid, messages))
        arrays = arrays if new is None else new
        messages = list(strategy.configure_evaluate(number, arrays, ConfigRecord(), grid))
        told.append(sorted(m.metadata.dst_node_id - min(grid.contexts) for m in messages))
        evaluated = strategy.aggregate_evaluate(number, asked(grid, messages))
        told += [dict(metrics or {}), dict(evaluated or {})]
    return arrays, told


def equal(ours, theirs):
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        mine, other = array.numpy(), theirs[name].numpy()
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        assert mine.tobytes() == other.tobytes(), name


@pytest.mark.sampled(keep=7)
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_restored_strategy_goes_on_to_the_bit(name, tmp_path):
    first, again = 1 << 40, 1 << 50
    random.seed(7)
    np.random.seed(7)
    begun = STRATEGIES[name]()
    state = InnerState(begun)
    grid = make_grid(first)
    arrays, _ = play(begun, grid, start_arrays(name), range(1, ROUNDS + 1))
    encoded = state.take({node: f"silo {node - first}" for node in grid.contexts})
    assert encoded.lost == ()
    path = write_checkpoint(
        Checkpoint(server_round=ROUNDS, arrays=encoded.arrays, state={"tree": encoded.tree}),
        tmp_path,
    )
    drawn = global_randomness()
    wanted, told = play(begun, grid, arrays, range(ROUNDS + 1, 2 * ROUNDS + 1))

    resumed = STRATEGIES[name]()
    checkpoint = read_checkpoint(path)
    nodes = {f"silo {number}": again + number for number in range(NODES)}
    InnerState(resumed).put_back(checkpoint.state["tree"], checkpoint, nodes)
    restore_global_randomness(drawn)
    other_grid = make_grid(again)
    ours, ours_told = play(resumed, other_grid, arrays, range(ROUNDS + 1, 2 * ROUNDS + 1))
    equal(ours, wanted)
    assert (
        name == "Alone" or ours["0" if "0" in ours else "a"] != arrays["0" if "0" in ours else "a"]
    )
    assert ours_told == told


def test_without_its_state_a_strategy_goes_on_otherwise():
    """What the test above would not notice, if the strategies kept nothing."""
    begun = STRATEGIES["FedAdam"]()
    grid = make_grid(1 << 40)
    arrays, _ = play(begun, grid, start_arrays("FedAdam"), range(1, 3))
    random.seed(1)
    wanted, _ = play(begun, grid, arrays, range(3, 5))
    random.seed(1)
    fresh, _ = play(STRATEGIES["FedAdam"](), grid, arrays, range(3, 5))
    assert fresh["a"].numpy().tobytes() != wanted["a"].numpy().tobytes()


class Mine(FedAvg):
    """A third party's strategy, with what such a strategy may have."""

    def __init__(self, **held):
        super().__init__(train_metrics_aggr_fn=lambda records, key: MetricRecord({"n": 1}))
        self.lock = threading.Lock()
        self.calls = {"train": 0}
        for name, value in held.items():
            setattr(self, name, value)


def test_a_third_partys_attributes_are_kept_and_its_functions_are_its_own(tmp_path):
    old = Mine(rng=np.random.default_rng(1))
    old.calls["train"] = 3
    old.rng.normal()
    encoded = InnerState(old).take({})
    new = Mine(rng=np.random.default_rng(2))
    mine = new.train_metrics_aggr_fn
    checkpoint = Checkpoint(server_round=1, arrays=encoded.arrays)
    InnerState(new).put_back(encoded.tree, checkpoint, {})
    assert new.calls == {"train": 3}
    assert new.train_metrics_aggr_fn is mine
    assert new.rng.normal() == old.rng.normal()


def test_what_would_be_lost_is_refused_at_the_start(tmp_path):
    with (tmp_path / "file").open("w") as file, pytest.raises(StateError) as caught:
        InnerState(Mine(log=file, inside={"names": np.array(["x"])}))
    said = str(caught.value)
    assert "Mine cannot be kept in a checkpoint" in said
    assert "- log is a _io:TextIOWrapper: its state cannot be read" in said
    assert "- inside.names is a numpy:ndarray: an array of <U1" in said
    assert "checkpoint.keep to 0" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (lambda: FedAvg(), lambda: flower.FedAdam(), "FedAvg when the state was saved, and is "),
        (lambda: FedAvg(), lambda: FedAvg(train_metrics_aggr_fn=max), "train_metrics_aggr_fn was"),
        (
            lambda: flower.DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 0.1, 2),
            lambda: flower.DifferentialPrivacyServerSideFixedClipping(flower.Krum(), 0.1, 0.1, 2),
            "strategy was",
        ),
    ],
    ids=["class", "function", "inside a wrapper"],
)
def test_another_strategy_than_then_is_refused(old, new, said):
    encoded = InnerState(old()).take({})
    with pytest.raises(StateError, match=said):
        InnerState(new()).put_back(
            encoded.tree, Checkpoint(server_round=1, arrays=encoded.arrays), {}
        )
