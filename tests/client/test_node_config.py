import pytest

from flower_split.client.node_config import NodeConfig
from flower_split.config.model import CutConfig, LoraSettings
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


def test_the_cut_is_the_silos_own_or_its_turn_or_the_runs():
    run = CutConfig(
        bottom_layers=1, top_layers=0, max_bottom_layers=3, max_top_layers=2, bottoms=(3, 2)
    )

    def cut(**chosen):
        own = NodeConfig(**chosen).own_cut(run)
        return own.bottom_layers, own.top_layers

    assert [cut(partition_id=n, num_partitions=3) for n in range(3)] == [(3, 0), (2, 0), (3, 0)]
    assert cut(partition_id=0, num_partitions=3, bottom_layers=1, top_layers=2) == (1, 2)
    assert cut(top_layers=0) == (1, 0)
    assert cut() == (1, 0)


@pytest.mark.parametrize(
    ("node_config", "said"),
    [
        ({"bottom-layers": 4}, "bottom-layers 4, and silos of this run may hold 1 to 3"),
        ({"bottom-layers": 0}, "bottom-layers 0, and silos of this run may hold 1 to 3"),
        ({"top-layers": 2}, "top-layers 2, and silos of this run may hold 1 only"),
        ({"bottom-layers": 2**70}, "may hold 1 to 3"),
    ],
)
def test_a_cut_that_the_run_does_not_leave_is_refused_with_its_bounds(node_config, said):
    with pytest.raises(ConfigError, match=said):
        NodeConfig.read(node_config).own_cut(CutConfig(max_bottom_layers=3))


@pytest.mark.parametrize("value", [-1, 1.0, "2", True, None])
def test_layers_that_are_none_are_refused(value):
    with pytest.raises(ConfigError, match="bottom-layers"):
        NodeConfig.read({"bottom-layers": value})
