"""The proof: a split run equals plain Flower and PEFT on the uncut model, adapter for adapter."""

import pytest
import torch
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Krum
from in_process_grid import InProcessGrid
from split_run import TOLERANCE, failed_rounds, largest_difference, run_split
from steps import KEEPING, SILOS, run_config
from tiny_checkpoint import save_texts, save_tiny_model
from uncut_model import initial_arrays
from uncut_run import run_uncut, uncut_app

from flower_split.apps.client_app import app as ready_made
from flower_split.client.node_config import NodeConfig
from flower_split.client.silo_data import silo_batches
from flower_split.config.run_config import read_run_config
from flower_split.server.grpc.server import TrunkServer
from flower_split.strategies import SplitStrategy
from flower_split.transport.local import InProcessTransport

ROUNDS = KEEPING["num-server-rounds"]
LORA = {"targets": KEEPING["lora.target-modules"]}
STRATEGIES = {
    "fedavg": lambda: FedAvg(fraction_evaluate=0.0, min_train_nodes=SILOS),
    "fedadam": lambda: FedAdam(fraction_evaluate=0.0, eta=1e-2, min_train_nodes=SILOS),
    "fedmedian": lambda: FedMedian(fraction_evaluate=0.0, min_train_nodes=SILOS),
    "krum": lambda: Krum(fraction_evaluate=0.0, num_malicious_nodes=1, min_train_nodes=SILOS),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: save_tiny_model(root / family, family) for family in ("llama", "gpt2")}


def uncut(folder, name, **options):
    config = run_config(folder, **KEEPING)
    app = uncut_app(folder, config=config, loras=LORA, **options)
    return run_uncut(STRATEGIES[name](), app, initial_arrays(folder, **LORA), rounds=ROUNDS)[0]


def split(folder, name, initial=None, **options):
    result, _ = run_split(run_config(folder, **KEEPING), STRATEGIES[name](), initial, **options)
    assert failed_rounds(result) == set()
    return result


CASES = [*(("llama", name) for name in STRATEGIES), ("gpt2", "fedavg")]


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_adapter_tensor_equals_that_of_the_uncut_run(folders, family, name):
    folder = folders[family]
    initial = initial_arrays(folder, **LORA)
    theirs = uncut(folder, name).arrays
    ours = split(folder, name, initial).arrays
    assert list(ours) == list(initial)
    assert list(ours) == list(theirs)
    ours, theirs = ours.to_torch_state_dict(), theirs.to_torch_state_dict()
    assert any(not torch.equal(theirs[k], v) for k, v in initial.to_torch_state_dict().items())
    assert largest_difference(ours, theirs) <= TOLERANCE


@pytest.mark.exhaustive
def test_the_transport_in_process_gives_the_same_adapters_as_grpc(folders, monkeypatch):
    over_grpc = split(folders["llama"], "fedavg").arrays
    engines = []

    class WithoutSocket(TrunkServer):
        def __init__(self, backend, *args, **kwargs):
            super().__init__(backend, *args, **kwargs)
            engines.append(backend)

    def connect(address, spec, ticket, **_):
        return InProcessTransport(engines[-1], spec, ticket)

    monkeypatch.setattr("flower_split.strategies.hosting.in_process.TrunkServer", WithoutSocket)
    in_process = split(folders["llama"], "fedavg", connect=connect).arrays
    assert list(in_process) == list(over_grpc)
    for name, array in over_grpc.items():
        assert (array.numpy() == in_process[name].numpy()).all(), name


@pytest.mark.slow
def test_silos_at_once_give_the_same_adapters_as_one_by_one(folders):
    one_by_one = split(folders["llama"], "fedavg").arrays
    at_once = split(folders["llama"], "fedavg", threads=SILOS).arrays
    for name, array in one_by_one.items():
        assert (array.numpy() == at_once[name].numpy()).all(), name


@pytest.mark.slow
def test_the_ready_made_apps_equal_plain_flower_too(folders, tmp_path):
    """The batches are flower_split's, with prompts masked; training and Flower are plain again."""
    folder = folders["llama"]
    changes = {
        "data.path": str(save_texts(tmp_path / "texts.jsonl")),
        "data.prompt": "prompt",
        "train.batch-size": 2,
        "train.accumulation": 2,
        "train.schedule": "linear",
        "train.warmup-steps": 2,
    }
    values = run_config(folder, **KEEPING, **changes)
    config = read_run_config(values)

    def silo(partition):
        return silo_batches(config, NodeConfig(partition_id=partition, num_partitions=SILOS))

    def silo_steps(partition, server_round):
        one_pass = [dict(batch) for batch in silo(partition).train(server_round)]
        return [one_pass[i : i + 2] for i in range(0, len(one_pass), 2)], silo(partition).num_train

    def rate(step):
        total = ROUNDS * len(silo_steps(0, 1)[0])
        return step / 2 if step < 2 else (total - step) / (total - 2)

    theirs = uncut(folder, "fedavg", steps=silo_steps, rate=rate, by_tokens=True)
    theirs = theirs.arrays.to_torch_state_dict()
    initial = initial_arrays(folder, **LORA)
    grid = InProcessGrid(ready_made, SILOS, run_config=values)
    ours = SplitStrategy(config, STRATEGIES["fedavg"]()).start(grid, initial).arrays
    assert largest_difference(ours.to_torch_state_dict(), theirs) <= TOLERANCE
