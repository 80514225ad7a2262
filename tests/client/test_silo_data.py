import pytest

from flower_split.client.silo_data import Partition, silo_batches
from flower_split.config.run_config import read_run_config
from flower_split.errors import ConfigError


@pytest.mark.parametrize(
    ("node_config", "wanted"),
    [
        ({}, Partition()),
        ({"partition-id": 1, "num-partitions": 3, "silo": "north"}, Partition(number=1, of=3)),
    ],
)
def test_the_node_config_names_the_part(node_config, wanted):
    assert Partition.from_node_config(node_config) == wanted


@pytest.mark.parametrize(
    "node_config",
    [
        {"partition-id": 3, "num-partitions": 3},
        {"partition-id": -1, "num-partitions": 3},
        {"partition-id": 1},
        {"num-partitions": 3},
        {"partition-id": "1", "num-partitions": 3},
    ],
)
def test_a_part_that_is_none_is_refused(node_config):
    with pytest.raises(ConfigError, match="partition-id"):
        Partition.from_node_config(node_config)


def test_the_data_is_tokenised_once_a_process(run_config):
    config = read_run_config(run_config)
    node = {"partition-id": 0, "num-partitions": 3}
    one, two = silo_batches(config, node), silo_batches(config, node)
    assert one.silo is two.silo
    assert silo_batches(config, {**node, "partition-id": 1}).silo is not one.silo


def test_silos_have_disjoint_parts_that_make_up_all(run_config):
    config = read_run_config({**run_config, "data.eval-fraction": 0.0})
    sizes = [
        silo_batches(config, {"partition-id": number, "num-partitions": 3}).num_train
        for number in range(3)
    ]
    assert sum(sizes) == silo_batches(config, {}).num_train == 36
