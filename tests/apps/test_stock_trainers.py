"""The examples of stock trainers: what a client model gives is what the uncut model gives."""

import importlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import steps
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from in_process_grid import InProcessGrid
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from split_run import TOLERANCE, largest_difference
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed
from uncut_model import initial_arrays, peft_model
from uncut_run import PlainExchange, run_uncut

from flower_split import SplitAdamW
from flower_split.adapters import load_state, method_problems, read_state
from flower_split.config.run_config import read_run_config
from flower_split.config.tasks import CAUSAL, Task
from flower_split.segments import resolve_source
from flower_split.strategies import SplitStrategy, build_inner

EXAMPLE = Path(__file__).parents[2] / "examples" / "stock_trainers"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a file of the example."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and EXAMPLE.name in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


def uncut(cut: ModuleType, task: Task = CAUSAL) -> Any:
    """The uncut model with the adapter that the client model and its trunk start from."""
    folder = resolve_source(cut.BASE).folder
    base: Any = AutoModelForCausalLM
    labels: dict[str, Any] = {}
    if task.classifies:
        base, labels = AutoModelForSequenceClassification, {"num_labels": len(task.labels)}
    model = base.from_pretrained(folder, dtype=torch.float32, **labels)
    model.config.pad_token_id = cut.tokenizer().pad_token_id
    plan, state = cut.start(task)
    whole = get_peft_model(model, plan.peft_config())
    load_state(whole, state)
    return whole


def adamw(model: Any) -> torch.optim.AdamW:
    own = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(own, lr=1e-2, weight_decay=0.0)


@pytest.mark.exhaustive
def test_the_trainer_and_its_own_optimizer(example: Any, tmp_path: Path) -> None:
    cut, trainer = example("cut_model"), example("trainer")
    losses = trainer.main(str(tmp_path / "any"), cut.cut_model(trunk_parameters=True), split=False)
    expected = trainer.main(str(tmp_path / "whole"), uncut(cut), split=False)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert len(losses) == 12


@pytest.mark.slow
def test_the_trainer_with_the_optimizer_of_both_sides(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, trainer = example("cut_model"), example("trainer")
    losses = trainer.main(str(tmp_path / "split"))
    monkeypatch.setattr(trainer, "SplitAdamW", lambda model, lr: adamw(model))
    expected = trainer.main(str(tmp_path / "whole"), uncut(cut))
    assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.medium
def test_accelerates_loop(example: Any) -> None:
    loop = example("accelerate_loop")
    whole = uncut(example("cut_model"))
    assert loop.main() == pytest.approx(loop.main(whole, adamw(whole)), rel=1e-5)


def accelerated(cut: Any, model: Any, optimizer: Any, precision: str, folder: Path) -> list[float]:
    """The losses of a step, of another one after `save_state`, and of that after `load_state`."""
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True, mixed_precision=precision)
    model, optimizer = accelerator.prepare(model, optimizer)
    assert isinstance(accelerator.unwrap_model(model), PeftModel)
    tokens, losses = cut.tokenizer(), []
    for texts in ((0, 1), (2, 3), None, (2, 3)):
        if texts is None:
            accelerator.load_state(str(folder))
            continue
        for number in texts:
            batch = tokens(cut.TEXTS[number], return_tensors="pt")
            with accelerator.accumulate(model):
                loss = model(**batch, labels=batch["input_ids"]).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        if number == 1:
            accelerator.save_state(str(folder))
    saved = folder / "adapter"
    model.save_pretrained(saved, state_dict=accelerator.get_state_dict(model))
    return losses


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.exhaustive)])
def test_accelerate_saves_and_loads_both_sides(
    example: Any, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for state in (AcceleratorState, GradientState):  # of the process, with its precision
        monkeypatch.setattr(state, "_shared_state", {})
    cut = example("cut_model")
    split, own, whole = cut.cut_model(), cut.cut_model(trunk_parameters=True), uncut(cut)
    found = [
        accelerated(cut, model, optimizer, precision, tmp_path / str(number))
        for number, (model, optimizer) in enumerate(
            [(split, SplitAdamW(split, lr=1e-2)), (own, adamw(own)), (whole, adamw(whole))]
        )
    ]
    *ours, expected = found
    assert expected[2:4] == expected[4:6] != expected[:2]
    assert all(losses == pytest.approx(expected, rel=1e-6) for losses in ours)
    tags, whole_adapter, plain = (
        load_file(tmp_path / str(number) / "adapter" / "adapter_model.safetensors")
        for number in range(3)
    )
    assert tags.keys() == whole_adapter.keys() == plain.keys()
    assert all(torch.allclose(whole_adapter[name], plain[name], atol=1e-6) for name in plain)
    assert {t.dtype for t in tags.values()} == {torch.float32, torch.uint8}


@pytest.mark.exhaustive
def test_trls_reward_trainer(example: Any) -> None:
    pytest.importorskip("trl")
    cut, reward = example("cut_model"), example("reward")
    client, whole = cut.cut_model(task=cut.REWARD), uncut(cut, cut.REWARD)
    set_seed(3)
    losses = reward.main(client)
    set_seed(3)
    assert losses == pytest.approx(reward.main(whole, adamw(whole)), rel=1e-5, abs=1e-7)
    trained = read_state(whole)
    silos = read_state(client)
    assert {"base_model.model.score.weight"} < set(silos) < set(trained)
    for name, tensor in silos.items():
        assert torch.allclose(tensor, trained[name], rtol=1e-4, atol=1e-6), name
    # The trunk's part shows in what is computed through it.
    tokens = cut.tokenizer()(cut.TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        rewards, expected = (model.eval()(**tokens).logits for model in (client, whole))
    assert torch.allclose(rewards, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.sampled(keep=1)
@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_trls_trainers(example: Any, name: str) -> None:
    pytest.importorskip("trl")
    trl = example(name)
    set_seed(3)
    losses = trl.main()
    whole = uncut(example("cut_model"))
    set_seed(3)
    assert losses == pytest.approx(trl.main(whole, adamw(whole)), rel=1e-5, abs=1e-7)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "settings",
    [
        {"packing": True, "max_length": 48},
        pytest.param({"padding_free": True, "max_length": None}, marks=pytest.mark.slow),
    ],
)
def test_trls_packed_texts(example: Any, settings: dict[str, Any]) -> None:
    pytest.importorskip("trl")
    sft, whole = example("sft"), uncut(example("cut_model"))
    losses = sft.main(**settings)
    assert losses == pytest.approx(sft.main(whole, adamw(whole), **settings), rel=1e-5, abs=1e-7)


@pytest.mark.exhaustive
def test_the_trainer_in_a_session_of_a_federated_run(
    example: Any, run_config: dict[str, Any], state_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its adapter and losses are those of plain Flower with the same Trainer of the whole model."""
    split = example("client_app")
    folder = run_config["model.name"]
    values = steps.run_config(
        folder, **{"train.learning-rate": 1e-2, "train.max-grad-norm": 0.0, "strategy.min-nodes": 2}
    )
    values |= {name: run_config[name] for name in run_config if name.startswith("data.")}
    taken: list[Any] = []
    make = split.trainer_of
    monkeypatch.setattr(
        split, "trainer_of", lambda m, b, o=None: (taken.append(b), make(m, b, o))[1]
    )
    initial = initial_arrays(folder)
    grid = InProcessGrid(split.app, 2, run_config=values)
    config = read_run_config(values)
    strategy = SplitStrategy(config, build_inner(config.strategy, config.lora))
    random.seed(0)
    ours = strategy.start(grid, initial)

    whole, order = ClientApp(), iter(taken)

    @whole.train()
    def train(message: Any, context: Any) -> Any:
        silo = PlainExchange(peft_model(folder), message, context)
        own = [p for p in silo.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(own, lr=1e-2, weight_decay=0.0)
        trained = make(silo.model, batches := next(order), optimizer).train()
        rows = sum(len(batch["input_ids"]) for batch in batches)
        return silo.reply({"train-loss": trained.training_loss, "num-examples": rows})

    @whole.evaluate()
    def evaluate(message: Any, context: Any) -> Any:
        silo = PlainExchange(peft_model(folder), message, context)
        loss = make(silo.model, next(order)).evaluate()["eval_loss"]
        return silo.reply({"eval-loss": loss, "num-examples": 1})

    theirs, _ = run_uncut(build_inner(config.strategy, config.lora), whole, initial, silos=2)
    assert next(order, None) is None
    mine, plain = ours.arrays.to_torch_state_dict(), theirs.arrays.to_torch_state_dict()
    assert mine.keys() == plain.keys()
    assert largest_difference(mine, plain) <= TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("sft", marks=pytest.mark.slow),
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("dpo", "grpo", "reward")),
    ],
)
@pytest.mark.medium
def test_trls_trainers_in_sessions_of_a_federated_run(
    example: Any, state_home: Path, name: str
) -> None:
    """Two silos over gRPC are as plain Flower with the same trainer of the whole model."""
    pytest.importorskip("trl")
    cut, trl, split = example("cut_model"), example(name), example("trl_client_app")
    task = cut.REWARD if name == "reward" else CAUSAL
    values = {
        "model.name": cut.BASE,
        "split.bottom-layers": cut.CUTS["bottom_layers"],
        "split.top-layers": cut.CUTS["top_layers"],
        "lora.r": cut.LORA.r,
        "lora.alpha": cut.LORA.alpha,
        "train.learning-rate": 1e-2,
        "train.max-grad-norm": 0.0,
        "train.keep-optimizer": False,
        "num-server-rounds": 2,
        "strategy.min-nodes": 2,
    }
    if task.classifies:
        values |= {"model.task": task.name, "model.labels": task.labels[0], "data.label": ""}
    config = read_run_config(values, check_method=method_problems)
    initial = ArrayRecord(cut.start(task)[1])
    strategy = SplitStrategy(config, build_inner(config.strategy, config.lora))
    random.seed(0)
    grid = InProcessGrid(split.app_of(trl.trainer_of), 2, run_config=values)
    ours = strategy.start(grid, initial)

    whole = ClientApp()

    @whole.train()
    def train(message: Any, context: Any) -> Any:
        silo, texts = PlainExchange(uncut(cut, task), message, context), split.texts_of(context)
        optimizer = adamw(silo.model)
        trainer = trl.trainer_of(silo.model, cut.tokenizer(), texts, optimizer, max_steps=2)
        loss = trainer.train().training_loss
        return silo.reply({"train-loss": loss, "num-examples": len(texts)})

    @whole.evaluate()
    def evaluate(message: Any, context: Any) -> Any:
        silo, texts = PlainExchange(uncut(cut, task), message, context), split.texts_of(context)
        loss = trl.trainer_of(silo.model, cut.tokenizer(), texts).evaluate()["eval_loss"]
        return silo.reply({"eval-loss": loss, "num-examples": len(texts)})

    theirs, _ = run_uncut(build_inner(config.strategy, config.lora), whole, initial, silos=2)
    mine, plain = ours.arrays.to_torch_state_dict(), theirs.arrays.to_torch_state_dict()
    assert mine.keys() == plain.keys()
    assert largest_difference(mine, plain) <= TOLERANCE
    for told, expected in (
        (ours.train_metrics_clientapp, theirs.train_metrics_clientapp),
        (ours.evaluate_metrics_clientapp, theirs.evaluate_metrics_clientapp),
    ):
        assert set(expected) == {1, 2}
        # TRL computes under autocast to bfloat16 by default, and the trunk with it.
        for number, metrics in expected.items():
            for key, value in metrics.items():
                assert told[number][key] == pytest.approx(value, rel=1e-4), (number, key)
