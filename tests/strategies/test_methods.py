"""Any method of PEFT: a split run equals plain Flower and PEFT on the uncut model."""

from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg
from in_process_grid import InProcessGrid
from method_cases import CASES
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from split_run import TOLERANCE, largest_difference, run_split
from steps import KEEPING, run_config
from tiny_checkpoint import save_texts, save_tiny_model
from uncut_model import base_model, load_prompt, logits, peft_model, prompt_state
from uncut_run import PromptExchange, run_uncut, uncut_app

from flower_split.adapters import method_problems, save_learned
from flower_split.adapters.methods import PREFIXES, PROMPTS, working_methods
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


class OfCase:
    """One case on one model: the run config, and the uncut model and its run."""

    def __init__(self, folders, name, **changes):
        case = CASES[name]
        self.folder = folders[case.family]
        self.values = run_config(
            self.folder,
            **{
                **KEEPING,
                "lora.r": 8,
                "lora.alpha": 16,
                "lora.target-modules": "all-linear",
                "strategy.min-nodes": SILOS,
                "num-server-rounds": ROUNDS,
                "peft.type": case.method,
                "trunk.adapters": "frozen" if case.frozen else "federated",
                **case.keys,
                **changes,
            },
        )
        self.config = read_run_config(self.values, check_method=method_problems)
        self._lora = {"config": partial(KINDS[case.method], task_type="CAUSAL_LM", **case.values)}

    def model(self):
        return peft_model(self.folder, **self._lora)

    def start(self):
        """PEFT's own."""
        if self.is_prompt:
            return ArrayRecord(prompt_state(self.model()))
        return ArrayRecord(get_peft_model_state_dict(self.model(), save_embedding_layers=False))

    @property
    def is_prompt(self):
        return self.config.peft.type in PROMPTS

    def uncut(self, initial, **options):
        if self.is_prompt:
            options["exchange"] = PromptExchange
        app = uncut_app(self.folder, config=self.values, loras=self._lora, **options)
        result, _ = run_uncut(fedavg(), app, initial, silos=SILOS, rounds=ROUNDS)
        return result.arrays.to_torch_state_dict()


def test_every_working_method_has_a_case():
    assert {case.method for case in CASES.values()} == set(working_methods())


CORE = {
    *("LoRA", "DoRA", "PiSSA", "modules to save", "trainable tokens, tied", "IA3, Conv1D"),
    *("ADALORA", "LN_TUNING", "LOHA", "OFT", "VERA"),
    *("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"),
}
"""Of every kind of method one, for the default suite; the slow one takes the others."""


@pytest.mark.sampled(keep=5)
@pytest.mark.parametrize(
    "name",
    [n if n in CORE else pytest.param(n, marks=pytest.mark.exhaustive) for n in CASES],
)
def test_a_split_run_equals_the_uncut_one(folders, tmp_path, name):
    case = OfCase(folders, name)
    with TrunkHost(case.config) as host:
        # Where the trunk is frozen, the silos' layers begin as they do in the whole adapter.
        initial = host.begin(None) if CASES[name].frozen else case.start()
        result, _ = run_split(case.values, fedavg(), silos=SILOS, host=host)
        ours = result.adapter
        save_learned(ours, host.plan, tmp_path, base_model=str(case.folder))
    if case.is_prompt:
        begun = case.start().to_torch_state_dict()
        assert all(torch.equal(begun[n], t) for n, t in initial.to_torch_state_dict().items())
    theirs = case.uncut(initial)
    assert set(ours) == set(theirs)
    assert any(not torch.equal(theirs[k], v) for k, v in initial.to_torch_state_dict().items())
    assert largest_difference(ours, theirs) <= TOLERANCE

    whole = case.model()
    (load_prompt if case.is_prompt else set_peft_model_state_dict)(whole, theirs)
    loaded = PeftModel.from_pretrained(base_model(case.folder), tmp_path)
    assert (logits(loaded) - logits(whole)).abs().max() <= 1e-5
    assert not torch.equal(logits(loaded), logits(base_model(case.folder)))


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize(
    "name",
    [
        *(
            "modules to save",
            "trainable tokens, tied",
            "trainable tokens",
            "DoRA, Conv1D",
            "VERA",
            "ADALORA",
        ),
        *("P_TUNING", "PREFIX_TUNING"),
        *("PROMPT_TUNING", "PREFIX_TUNING, projected", "CARTRIDGE"),
    ],
)
def test_the_ready_made_loop_equals_the_uncut_run(folders, tmp_path, name):
    data = {
        "data.path": str(save_texts(tmp_path / "texts.jsonl")),
        "data.prompt": "prompt",
        "train.batch-size": 2,
        "train.accumulation": 2,
    }
    case = OfCase(folders, name, **data)

    def silo_steps(partition, server_round):
        node = NodeConfig(partition_id=partition, num_partitions=SILOS)
        silo = silo_batches(case.config, node)
        batches = [dict(batch) for batch in silo.train(server_round)]
        return [batches[i : i + 2] for i in range(0, len(batches), 2)], silo.num_train

    first = 0 if case.is_prompt and case.config.peft.type not in PREFIXES else 1
    theirs = case.uncut(case.start(), steps=silo_steps, by_tokens=True, first_target=first)
    grid = InProcessGrid(ready_made, SILOS, run_config=case.values, threads=SILOS)
    ours = SplitStrategy(case.config, fedavg()).start(grid).adapter
    assert largest_difference(ours, theirs) <= TOLERANCE
