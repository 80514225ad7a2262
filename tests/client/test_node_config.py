import pytest

from flower_split.client.node_config import NodeConfig
from flower_split.config.model import LoraSettings
from flower_split.errors import ConfigError


def test_what_flower_passes_is_read():
    node = NodeConfig.read(
        {"silo": "north", "data-path": "/data/n.jsonl", "eval-path": "/data/e.txt", "app.own": 1}
    )
    assert node == NodeConfig(silo="north", data_path="/data/n.jsonl", eval_path="/data/e.txt")
    assert node.partition is None
    assert NodeConfig.read({"partition-id": 1, "num-partitions": 3}).partition == (1, 3)


def test_a_silo_has_a_name_whatever_is_configured():
    assert NodeConfig.read({"silo": 7}).name(5) == "7"
    assert NodeConfig.read({"partition-id": 0, "num-partitions": 3}).name(5) == "0"
    assert NodeConfig().name(5) == "5"


@pytest.mark.parametrize(
    "node_config",
    [
        {"partition-id": 3, "num-partitions": 3},
        {"partition-id": -1, "num-partitions": 3},
        {"partition-id": 1},
        {"num-partitions": 3},
        {"partition-id": "1", "num-partitions": 3},
        {"partition-id": True, "num-partitions": 3},
    ],
)
def test_a_part_that_is_none_is_refused(node_config):
    with pytest.raises(ConfigError, match="partition-id"):
        NodeConfig.read(node_config)


@pytest.mark.parametrize(
    ("node_config", "said"),
    [
        ({"datapath": "/x.jsonl"}, "unknown key 'datapath'; did you mean 'data-path'"),
        ({"data-path": 3}, "data-path 3: expected text"),
        ({"silo": 0.5}, "silo 0.5: expected text"),
        ({"data-path": "data/x.jsonl"}, "expected an absolute path"),
        ({"eval-path": "x.jsonl"}, "expected an absolute path"),
        ({"state-dir": "state"}, "state-dir 'state': expected an absolute path"),
        ({"state-dir": 7}, "state-dir 7: expected text"),
        ({"cache-dir": "cache"}, "cache-dir 'cache': expected an absolute path"),
        ({"max-download-gib": 0}, "max-download-gib 0: expected 1 or more"),
        ({"state-days": 0}, "state-days 0: expected 1 or more"),
        ({"state-days": "soon"}, "state-days 'soon': expected a whole number"),
        (
            {"data-path": "/x.jsonl", "partition-id": 0, "num-partitions": 2},
            "leave out partition-id",
        ),
    ],
)
def test_a_mistake_is_said_helpfully(node_config, said):
    with pytest.raises(ConfigError, match="node config") as caught:
        NodeConfig.read(node_config)
    assert said in str(caught.value)


def test_all_mistakes_come_at_once():
    with pytest.raises(ConfigError) as caught:
        NodeConfig.read({"silo": 0.5, "shard": 1, "data-path": "x.jsonl"})
    for said in ("silo 0.5", "'shard'", "absolute"):
        assert said in str(caught.value)


def test_a_module_function_may_get_a_part():
    node = NodeConfig.read({"data-path": "a.b:c", "partition-id": 0, "num-partitions": 2})
    assert node.partition == (0, 2)


def test_rank_and_alpha_are_the_silos_own_or_its_turn_or_the_runs():
    run = LoraSettings(r=8, alpha=16.0, ranks=(4, 2), alphas=(1.0,))
    simulated = [NodeConfig(partition_id=n, num_partitions=3).own_lora(run) for n in range(3)]
    assert [(lora.r, lora.alpha) for lora in simulated] == [(4, 1.0), (2, 1.0), (4, 1.0)]
    own = NodeConfig(partition_id=0, num_partitions=3, lora_r=5, lora_alpha=3.0)
    assert own.own_lora(run) == LoraSettings(r=5, alpha=3.0)
    assert NodeConfig().own_lora(run) == LoraSettings(r=8, alpha=16.0)
