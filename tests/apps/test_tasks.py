"""The tasks beside causal language modelling, through the ready-made apps."""

import json
from functools import partial

import pytest
import torch
from exporting import flower_split
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from in_process_grid import RUN_ID, InProcessGrid
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from split_run import TOLERANCE, largest_difference
from steps import KEEPING, run_config
from task_models import CASES, LABELS, save_rows, save_task_models, task_values, uncut_base
from tiny_checkpoint import WORDS
from transformers import AutoModel, AutoTokenizer, DistilBertConfig, ElectraConfig, RobertaConfig
from uncut_model import peft_model
from uncut_run import run_uncut, uncut_app

from flower_split.adapters import method_problems
from flower_split.apps.client_app import app as client_app
from flower_split.apps.server_app import app as server_app
from flower_split.client import SplitSession
from flower_split.client.node_config import NodeConfig
from flower_split.client.silo_data import silo_batches
from flower_split.config.run_config import read_run_config
from flower_split.config.tasks import (
    CLASSIFYING,
    MASKED_LM,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
)
from flower_split.errors import FlowerSplitError, ModelError
from flower_split.reporting import read_result
from flower_split.strategies import SplitStrategy, TrunkHost

SILOS, ROUNDS = 2, 2
TASK_TYPES = {SEQUENCE_CLASSIFICATION: "SEQ_CLS", TOKEN_CLASSIFICATION: "TOKEN_CLS"}
TARGETS = {"llama, sequences": "q_proj, up_proj", "llama, tokens": "all-linear"}
IDS = torch.tensor([[5, 6, 7, 8, 9], [6, 7, 8, 0, 0]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_task_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def values(folders, tmp_path):
    def of(name, **changes):
        family, task = CASES[name]
        return run_config(
            folders[family],
            **{
                **KEEPING,
                "lora.target-modules": TARGETS.get(name, "query, dense"),
                "strategy.min-nodes": SILOS,
                "num-server-rounds": ROUNDS,
                "strategy.fraction-evaluate": 1.0,
                "train.batch-size": 3,
                "train.accumulation": 2,
                "train.max-length": 16,
                "output-dir": str(tmp_path / "out"),
                **task_values(task, save_rows(tmp_path / "rows.jsonl", task)),
                **changes,
            },
        )

    return of


def run(run_config, nodes=SILOS, **grid):
    in_process = InProcessGrid(client_app, nodes, run_config=run_config, **grid)
    server_app(in_process, Context(RUN_ID, 1, {}, RecordDict(), dict(run_config)))


def predictions(batch):
    return int((batch["labels"] != -100).sum())


def lora(run_config, task):
    targets = [name.strip() for name in run_config["lora.target-modules"].split(",")]
    wanted = targets if len(targets) > 1 else targets[0]
    values = {"r": 4, "lora_alpha": 8, "target_modules": wanted}
    if wanted == "all-linear":  # PEFT would take the head for one of them
        values["modules_to_save"] = ["score"]
    return {
        "config": partial(LoraConfig, task_type=TASK_TYPES.get(task), **values),
        "base": uncut_base(task),
    }


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, attention_mask=(IDS != 0).long()).logits


FURTHER = ("bert, sequences", "llama, tokens")


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in FURTHER)) for name in CASES],
)
def test_a_run_equals_the_uncut_one(values, folders, tmp_path, name):
    family, task = CASES[name]
    given = values(name)
    config = read_run_config(given, check_method=method_problems)
    silos = [
        silo_batches(config, NodeConfig(partition_id=n, num_partitions=SILOS)) for n in range(SILOS)
    ]

    def steps(partition, server_round):
        silo = silos[partition]
        batches = [dict(batch) for batch in silo.train(server_round)]
        return [batches[i : i + 2] for i in range(0, len(batches), 2)], silo.num_train

    def share(batch, step):
        return predictions(batch) / sum(map(predictions, step))

    with TrunkHost(config) as host:
        initial = host.begin(None)
    run(given, threads=SILOS)
    loras = lora(given, task)
    app = uncut_app(folders[family], config=given, loras=loras, steps=steps, share=share)
    fedavg = FedAvg(fraction_evaluate=0.0, min_train_nodes=SILOS, min_available_nodes=SILOS)
    result, _ = run_uncut(fedavg, app, initial, silos=SILOS, rounds=ROUNDS)
    theirs = result.arrays.to_torch_state_dict()
    adapter = tmp_path / "out" / "adapter"
    ours = load_file(adapter / "adapter_model.safetensors")
    assert set(ours) == set(theirs)
    assert largest_difference(ours, theirs) <= TOLERANCE
    heads = [n for n in ours if "score" in n or "classifier" in n]
    assert bool(heads) == (task in CLASSIFYING)
    first = initial.to_torch_state_dict()
    assert all(not torch.equal(theirs[n], first[n]) for n in heads)

    whole = peft_model(folders[family], **loras)
    set_peft_model_state_dict(whole, theirs)
    loaded = PeftModel.from_pretrained(uncut_base(task)(folders[family]), adapter)
    assert (logits(loaded) - logits(whole)).abs().max() <= 1e-5
    written = json.loads((adapter / "adapter_config.json").read_text())
    assert written["task_type"] == TASK_TYPES.get(task)
    card = (adapter / "README.md").read_text(encoding="utf-8")
    assert f"- task: {task}\n" in card
    assert ("- labels: no, maybe, yes\n" in card) == (task in CLASSIFYING)

    # What is told of all silos is what the uncut model does on their data put together.
    told = read_result(tmp_path / "out" / "result.json").rounds[-1].aggregated
    wanted, found, losses = [], [], 0.0
    for silo in silos:
        for batch in silo.held_out():
            with torch.no_grad():
                output = whole.eval()(**batch)
            targets = batch["labels"] != -100
            wanted.append(batch["labels"][targets])
            found.append(output.logits[targets].argmax(-1))
            losses += float(output.loss) * predictions(batch)
    wanted, found = torch.cat(wanted), torch.cat(found)
    assert told["eval-loss"] == pytest.approx(losses / len(wanted), rel=1e-4)
    accuracy = float((wanted == found).float().mean())
    if task == MASKED_LM:
        assert told["token-accuracy"] == pytest.approx(accuracy)
        assert told["perplexity"] == pytest.approx(torch.tensor(told["eval-loss"]).exp().item())
        return
    assert told["accuracy"] == pytest.approx(accuracy)
    assert told["f1"] == pytest.approx(macro_f1(wanted, found))


SIZES = {"vocab_size": len(WORDS) + 8, "max_position_embeddings": 64}
NARROW = {
    **{"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"intermediate_size": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
HEADLESS = {
    "roberta": (RobertaConfig(**SIZES, **NARROW, pad_token_id=1), "query", "lm_head"),
    "electra": (
        ElectraConfig(**SIZES, **NARROW, embedding_size=16),
        "query",
        "generator_predictions, generator_lm_head",
    ),
    "distilbert": (
        DistilBertConfig(
            **SIZES,
            dim=16,
            n_layers=4,
            n_heads=4,
            hidden_dim=24,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        "q_lin",
        "vocab_transform, vocab_layer_norm, vocab_projector",
    ),
}


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("family", HEADLESS)
def test_a_masked_models_head_that_a_checkpoint_lacks_is_trained(values, folders, tmp_path, family):
    config, target, modules = HEADLESS[family]
    folder = tmp_path / family
    torch.manual_seed(3)
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(folders["bert"]).save_pretrained(folder)
    given = values(
        "bert, masked",
        **{
            "model.name": str(folder),
            "lora.target-modules": target,
            "peft.modules-to-save": modules,
            "strategy.fraction-evaluate": 0.0,
        },
    )
    config = read_run_config(given, check_method=method_problems)
    silos = [
        silo_batches(config, NodeConfig(partition_id=n, num_partitions=SILOS)) for n in range(SILOS)
    ]

    def steps(partition, server_round):
        batches = [dict(batch) for batch in silos[partition].train(server_round)]
        return [batches[i : i + 2] for i in range(0, len(batches), 2)], silos[partition].num_train

    def share(batch, step):
        return predictions(batch) / sum(map(predictions, step))

    with TrunkHost(config) as host:
        initial = host.begin(None)
    run(given)
    loras = lora(given, MASKED_LM)
    saved = [name.strip() for name in modules.split(",")]
    loras["config"] = partial(loras["config"], target_modules=[target], modules_to_save=saved)
    app = uncut_app(folder, config=given, loras=loras, steps=steps, share=share)
    fedavg = FedAvg(fraction_evaluate=0.0, min_train_nodes=SILOS, min_available_nodes=SILOS)
    result, _ = run_uncut(fedavg, app, initial, silos=SILOS, rounds=ROUNDS)
    theirs = result.arrays.to_torch_state_dict()
    ours = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert set(ours) == set(theirs)
    assert largest_difference(ours, theirs) <= TOLERANCE


def macro_f1(wanted, found):
    scores = []
    for label in range(len(LABELS)):
        right = int(((wanted == label) & (found == label)).sum())
        either = int((wanted == label).sum()) + int((found == label).sum())
        if either:
            scores.append(2 * right / either)
    return sum(scores) / len(scores)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.labels": ""}, r"model\.task 'sequence-classification' needs model\.labels"),
        ({"model.labels": "one"}, "name two labels at least"),
        ({"data.label": ""}, r"data\.label must name a field"),
        ({"model.labels": "one", "data.label": ""}, "learns from pairs of texts"),
        ({"data.prompt": "prompt"}, r"data\.prompt is for model\.task 'causal-lm'"),
        ({"sample-prompt": "the"}, r"sample-prompt is for model\.task 'causal-lm'"),
        ({"data.mlm-probability": 0.3}, r"data\.mlm-probability is for model\.task 'masked-lm'"),
        ({"strategy.name": "flora"}, r"flora.*peft\.modules-to-save 'classifier, score'"),
        ({"peft.type": "TRAINABLE_TOKENS"}, r"trains no modules as a whole"),
        ({"model.quantization": "nf4"}, r"is for plain LoRA"),
        ({"model.task": "causal-lm"}, r"model\.labels would not be used"),
        ({"model.task": "masked-lm", "model.labels": ""}, "'llama' has no masked language model"),
        ({"model.task": "summarizing"}, r"model\.task.*'summarizing'"),
    ],
)
def test_what_does_not_fit_the_task_is_told_at_the_start(values, changes, said):
    with pytest.raises(FlowerSplitError, match=f"(?s){said}"):
        run(values("llama, sequences", **changes))


@pytest.mark.slow
def test_a_run_is_resumed_and_one_of_another_task_is_not(values, tmp_path):
    given = values("llama, sequences", **{"train.keep-optimizer": False})
    run({**given, "output-dir": str(tmp_path / "whole")})
    run({**given, "num-server-rounds": 1})
    run({**given, "resume": True})
    folders = [tmp_path / name / "adapter" for name in ("whole", "out")]
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    with pytest.raises(FlowerSplitError, match=r"model\.labels was 'no,maybe,yes'"):
        run({**given, "resume": True, "model.labels": "no, yes, maybe"})


@pytest.mark.exhaustive
def test_delivered_models_and_shared_trunks_learn_to_classify(values, tmp_path):
    own, delivered = (str(tmp_path / name) for name in ("own", "delivered"))
    shared = {"trunk.adapters": "shared", "num-server-rounds": 1}
    run(values("bert, sequences", **shared, **{"output-dir": own}))
    server = {"model.delivery": "server", "output-dir": delivered}
    cache = {"cache-dir": str(tmp_path / "cache")}
    run(values("bert, sequences", **shared, **server), node_config=cache)
    file = "adapter/adapter_model.safetensors"
    ours, theirs = (load_file(f"{out}/{file}") for out in (own, delivered))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.sampled(keep=1)
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedprox", "fedmedian"])
def test_flowers_own_strategies_take_a_head(values, tmp_path, name):
    options = {"strategy.proximal-mu": 0.1} if name == "fedprox" else {}
    run(values("bert, tokens", **{"strategy.name": name, "num-server-rounds": 1, **options}))
    assert read_result(tmp_path / "out" / "result.json").rounds[-1].aggregated["f1"] >= 0


def test_masked_models_take_low_rank_strategies_and_are_merged(values, folders, tmp_path):
    run(values("bert, masked", **{"strategy.name": "flora", "num-server-rounds": 1}))
    made = tmp_path / "merged"
    said = flower_split("export", tmp_path / "out", "--out", made, "--merge", folders["bert"])
    assert said.exit_code == 0, said.output
    base = uncut_base(MASKED_LM)
    wrapped = PeftModel.from_pretrained(base(folders["bert"]), tmp_path / "out" / "adapter")
    assert (logits(base(made)) - logits(wrapped)).abs().max() <= 1e-6
    named = json.loads((made / "config.json").read_text())["architectures"]
    assert named == ["BertForMaskedLM"]
    assert read_result(tmp_path / "out" / "result.json").rounds[-1].aggregated["perplexity"] > 0


@pytest.mark.medium
def test_a_task_without_texts_to_continue_says_so(values):
    said = []

    def asks(session):
        with pytest.raises(ModelError, match="continues no text"):
            session.generate("the sum")
        said.append(True)

    run_app = ClientApp()

    @run_app.evaluate()
    def evaluate(message, context):
        with SplitSession(message, context) as session:
            asks(session)
            found = session.evaluate()
            return session.reply(found.reported(), num_examples=found.weight("masked-lm"))

    given = values("bert, masked", **{"num-server-rounds": 1, "evaluate-initial": True})
    config = read_run_config(given)
    grid = InProcessGrid(run_app, SILOS, run_config=given)
    inner = FedAvg(fraction_train=0.0, min_available_nodes=SILOS)
    SplitStrategy(config, inner).start(grid)
    assert said
