"""Any method of PEFT: a split run equals plain Flower and PEFT on the uncut model."""

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg
from in_process_grid import InProcessGrid
from method_cases import CASES
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from plain_flower import plain_client_app, run_plain, uncut_model
from split_flower import (
    RUN_CONFIG,
    TOLERANCE,
    TRAIN,
    largest_difference,
    run_split,
    steps_of,
)
from tiny_checkpoint import save_texts, save_tiny_model
from transformers import AutoModelForCausalLM

from flower_split.adapters import method_problems, save_learned
from flower_split.adapters.methods import working_methods
from flower_split.apps.client_app import app as ready_made
from flower_split.client.node_config import NodeConfig
from flower_split.client.silo_data import silo_batches
from flower_split.config.run_config import read_run_config
from flower_split.strategies import SplitStrategy, TrunkHost

SILOS, ROUNDS = 2, 2
KINDS = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: save_tiny_model(root / family, family) for family in ("llama", "gpt2")}


def fedavg():
    return FedAvg(fraction_evaluate=0.0, min_train_nodes=SILOS, min_available_nodes=SILOS)


def changes_of(case):
    return {
        "lora.r": 8,
        "lora.alpha": 16,
        "peft.type": case.method,
        "num-server-rounds": ROUNDS,
        "trunk.adapters": "frozen" if case.frozen else "federated",
        **case.keys,
    }


def test_every_working_method_has_a_case():
    assert {case.method for case in CASES.values()} == set(working_methods())


@pytest.mark.parametrize("name", CASES)
def test_a_split_run_equals_the_uncut_one(folders, tmp_path, name):
    case = CASES[name]
    folder, kind = folders[case.family], KINDS[case.method]
    config = read_run_config(
        {**RUN_CONFIG, "model.name": str(folder), **changes_of(case)}, check_method=method_problems
    )
    with TrunkHost(config) as host:
        initial = host.begin(None)
        ours = run_split(
            folder, fedavg(), None, silos=SILOS, changes=changes_of(case), host=host
        ).adapter
        save_learned(ours, host.plan, tmp_path, base_model=str(folder))
    whole = uncut_model(folder, case.values, kind)
    if not case.frozen:
        initial = ArrayRecord(get_peft_model_state_dict(whole, save_embedding_layers=False))
    app = plain_client_app(folder, case.values, steps_of, kind=kind, **TRAIN)
    theirs = run_plain(
        app, fedavg(), initial, num_nodes=SILOS, num_rounds=ROUNDS
    ).to_torch_state_dict()
    assert set(ours) == set(theirs)
    assert any(not torch.equal(theirs[k], v) for k, v in initial.to_torch_state_dict().items())
    assert largest_difference(ours, theirs) <= TOLERANCE

    set_peft_model_state_dict(whole, theirs)
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tmp_path
    )
    ids = torch.randint(4, 15, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = whole.eval()(ids).logits
        assert (loaded.eval()(ids).logits - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["modules to save", "trainable tokens", "DoRA, Conv1D", "VERA"])
def test_the_ready_made_loop_equals_the_uncut_run(folders, tmp_path, name):
    case = CASES[name]
    folder, kind = folders[case.family], KINDS[case.method]
    values = {
        **RUN_CONFIG,
        **changes_of(case),
        "model.name": str(folder),
        "data.path": str(save_texts(tmp_path / "texts.jsonl")),
        "data.prompt": "prompt",
        "train.batch-size": 2,
        "train.accumulation": 2,
    }
    config = read_run_config(values, check_method=method_problems)

    def silo_steps(partition, server_round):
        node = NodeConfig(partition_id=partition, num_partitions=SILOS)
        silo = silo_batches(config, node)
        batches = [dict(batch) for batch in silo.train(server_round)]
        return [batches[i : i + 2] for i in range(0, len(batches), 2)], silo.num_train

    whole = uncut_model(folder, case.values, kind)
    initial = ArrayRecord(get_peft_model_state_dict(whole, save_embedding_layers=False))
    app = plain_client_app(folder, case.values, silo_steps, kind=kind, by_tokens=True, **TRAIN)
    theirs = run_plain(app, fedavg(), initial, num_nodes=SILOS, num_rounds=ROUNDS)
    grid = InProcessGrid(ready_made, SILOS, run_config=values, threads=SILOS)
    ours = SplitStrategy(config, fedavg()).start(grid).adapter
    assert largest_difference(ours, theirs.to_torch_state_dict()) <= TOLERANCE
