"""A federation in one process: real messages to a real ClientApp, one context a node."""

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flower_split.apps.in_process import FIRST_NODE, InProcessGrid, message_bytes


def counting_app(seen):
    app = ClientApp()

    @app.train()
    def train(message, context):
        seen.append((context.node_id, dict(context.node_config), dict(context.run_config)))
        arrays = message.content["arrays"].to_torch_state_dict()
        moved = {name: tensor + context.node_config["step"] for name, tensor in arrays.items()}
        content = RecordDict(
            {"arrays": ArrayRecord(moved), "metrics": MetricRecord({"num-examples": 1})}
        )
        return Message(content, reply_to=message)

    return app


def start(state, grid, rounds=2):
    strategy = FedAvg(fraction_evaluate=0.0)
    return strategy.start(grid, ArrayRecord(state), num_rounds=rounds).arrays


def test_every_node_has_its_own_config_and_the_run_s():
    seen = []
    grid = InProcessGrid(
        counting_app(seen), 2, run_config={"seed": 3}, node_config=[{"step": 1.0}, {"step": 3.0}]
    )
    arrays = start({"x": torch.zeros(2)}, grid)
    assert arrays["x"].numpy().tolist() == [4.0, 4.0]  # two rounds of the mean of 1 and 3
    configs = {node: node_config for node, node_config, _ in seen}
    assert configs[FIRST_NODE] == {"partition-id": 0, "num-partitions": 2, "step": 1.0}
    assert configs[FIRST_NODE + 1] == {"partition-id": 1, "num-partitions": 2, "step": 3.0}
    assert all(run_config == {"seed": 3} for _, _, run_config in seen)


def test_a_node_that_raises_answers_with_an_error():
    grid = InProcessGrid(counting_app([]), 1)  # without the key that the app reads
    message = grid.create_message(
        RecordDict({"arrays": ArrayRecord({"x": torch.ones(1)})}), "train", FIRST_NODE, ""
    )
    (reply,) = grid.send_and_receive([message])
    assert reply.has_error() and "KeyError" in reply.error.reason


@pytest.mark.parametrize(
    "pull",
    [
        lambda grid, ids: grid.pull_messages(ids),
        lambda grid, ids: grid.pull_messages(message_ids=ids),
        lambda grid, ids: grid.pull_messages(reply_to_message_ids=ids),
        lambda grid, _: grid.pull_messages(),
    ],
)
def test_replies_are_pulled_as_from_any_version_of_flowers_grid_and_once(pull):
    grid = InProcessGrid(counting_app([]), 2, node_config={"step": 1.0})
    ids = grid.push_messages(
        grid.create_message(RecordDict({"arrays": ArrayRecord()}), "train", node, "")
        for node in grid.get_node_ids()
    )
    assert grid.pull_messages([]) == []
    assert [reply.metadata.reply_to_message_id for reply in pull(grid, ids)] == ids
    assert pull(grid, ids) == []


def test_ids_of_both_names_are_refused():
    with pytest.raises(TypeError, match="given twice"):
        InProcessGrid(counting_app([]), 1).pull_messages(["a"], message_ids=["a"])


def test_a_config_for_every_node_or_one_for_all():
    with pytest.raises(ValueError, match="3 nodes and 2 node configs"):
        InProcessGrid(counting_app([]), 3, node_config=[{}, {}])


def test_bytes_of_a_message_are_those_of_its_tensors_and_little_more():
    grid = InProcessGrid(counting_app([]), 1)
    content = RecordDict({"arrays": ArrayRecord({"x": torch.zeros(10_000)})})
    size = message_bytes(grid.create_message(content, "train", FIRST_NODE, ""))
    assert 40_000 < size < 42_000
