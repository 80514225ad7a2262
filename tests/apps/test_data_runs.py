"""Runs of the ready-made apps on data as people have it: one line a silo says what became of it."""

import json
import logging
from pathlib import Path
from typing import Any

import chat_templates as shapes
import pytest
import torch
from in_process_grid import InProcessGrid
from tiny_checkpoint import save_tiny_run, tiny_run_config

from flower_split.apps.client_app import app as client_app
from flower_split.apps.server_run import serve_run
from flower_split.client import SplitSession, silo_preferences
from flower_split.segments import load_tokenizer

WORDS = ("the sum of", "a value returns", "the array", "number given axis list")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a model whose tokenizer has a chat template."""
    save_tiny_run(tmp_path)
    tokenizer = load_tokenizer(tmp_path / "model")
    tokenizer.chat_template = shapes.LINES
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def adapter(folder: Path, name: str, **changes: Any) -> dict[str, torch.Tensor]:
    values = {"data.path": str(folder / name), **changes}
    config = tiny_run_config(folder, **values)
    result = serve_run(InProcessGrid(client_app, 3, run_config=config), config)
    assert all(not row.failure for row in result.history)
    return dict(result.arrays.to_torch_state_dict())


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    name = "flower_split.client.silo_data"
    return [record.message for record in caplog.records if record.name == name]


@pytest.mark.medium
def test_chats_with_bad_rows(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    chats = [
        [{"role": "user", "content": WORDS[i % 4]}, {"role": "assistant", "content": WORDS[i % 3]}]
        for i in range(24)
    ]
    lines = [json.dumps({"messages": chat}) for chat in chats]
    lines[3], lines[20] = '{"messages": [', json.dumps({"messages": chats[0][:1]})
    (folder / "chats.jsonl").write_text("\n".join(lines))
    caplog.set_level(logging.INFO, logger="flower_split")
    keys = {"data.messages": "messages", "data.bad-rows": "skip"}
    found = adapter(folder, "chats.jsonl", **keys)
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    lines = told(caplog)
    assert len(lines) == 3, "one line a silo"
    assert all("24 rows read from" in line and "(line 4" in line for line in lines)
    assert sum("line 21" in line for line in lines) == 1
    assert {line.partition(":")[0] for line in lines} == {f"data of silo {i}" for i in range(3)}


@pytest.mark.exhaustive
def test_a_table_with_a_template_is_the_same_text_as_a_prompt(folder: Path) -> None:
    rows = [(WORDS[i % 4], WORDS[(i + 1) % 3]) for i in range(18)]
    table = "ask,text\n" + "".join(f"{ask},{text}\n" for ask, text in rows)
    (folder / "rows.csv").write_text(table)
    one = adapter(folder, "rows.csv", **{"data.template": "{ask}\n"})
    other = adapter(folder, "rows.csv", **{"data.prompt": "ask"})
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.exhaustive
def test_packed_rows(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flower_split")
    found = adapter(folder, "texts.jsonl", **{"data.packing": True, "train.max-length": 24})
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    assert all("packed into" in line for line in told(caplog))


@pytest.mark.exhaustive
def test_preference_pairs_train_in_a_clientapp_of_ones_own(folder: Path) -> None:
    """TRL's DPOTrainer takes them as they are read, and both sides of the cut learn."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from flwr.clientapp import ClientApp

    rows = [
        {"ask": WORDS[i % 4], "chosen": WORDS[(i + 1) % 4], "rejected": WORDS[(i + 2) % 4]}
        for i in range(18)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    app = ClientApp()

    @app.train()
    def train(message: Any, context: Any) -> Any:
        with SplitSession(message, context) as session:
            pairs, _ = silo_preferences(session.config, session.node)
            trainer = trl.DPOTrainer(
                model=session.model,
                args=trl.DPOConfig(
                    str(folder / "trained"),
                    max_steps=2,
                    per_device_train_batch_size=2,
                    bf16=False,
                    report_to=[],
                    save_strategy="no",
                    use_cpu=True,
                ),
                train_dataset=Dataset.from_list(pairs),
                processing_class=session.tokenizer,
                optimizers=(session.optimizer, None),
            )
            loss = trainer.train().training_loss
            return session.reply({"train-loss": loss}, num_examples=len(pairs))

    values = {"data.path": str(folder / "pairs.jsonl"), "data.prompt": "ask"}
    config = tiny_run_config(
        folder,
        **values,
        **{"num-server-rounds": 1, "strategy.fraction-evaluate": 0.0, "evaluate-initial": False},
    )
    result = serve_run(InProcessGrid(app, 3, run_config=config), config)
    assert len(result.train_metrics_clientapp) == 1
    assert all(not row.failure for row in result.history)
    trained = result.arrays.to_torch_state_dict()
    moved = {name for name, tensor in trained.items() if "lora_B" in name and tensor.any()}
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in moved} == {0, 1, 2, 3}
