"""Rendered examples: every token of an example, parted by whether it has a loss."""

import json

import pytest
import torch
from tiny_checkpoint import save_tiny_run

from flower_split.client.rendering import MOST_CHARS, render_examples
from flower_split.config.sections import DataConfig
from flower_split.data import load_silo
from flower_split.segments import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = save_tiny_run(tmp_path_factory.mktemp("tiny"))
    return load_tokenizer(folder / "model")


def silo(tmp_path, tokenizer, rows, **config):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(file), eval_fraction=0.0, partitioner="none", **config)
    return load_silo(data, tokenizer, partition_id=None, num_partitions=None, max_length=64, seed=0)


def test_the_prompt_has_no_loss_and_the_answer_has(tmp_path, tokenizer):
    rows = [{"question": f"the sum of {n}", "answer": "an array"} for n in range(5)]
    held = silo(tmp_path, tokenizer, rows, prompt="question", text="answer")
    first, *more = render_examples(held, tokenizer, 3)
    assert len(more) == 2
    assert [has_loss for has_loss, _ in first.parts] == [False, True]
    ids = held.train.sequences[0]
    assert first.tokens == len(ids)
    assert first.targets == len(ids) - held.train.prompt_lengths[0]
    prompt = held.train.prompt_lengths[0]
    assert first.parts == (
        (False, tokenizer.decode(ids[:prompt])),
        (True, tokenizer.decode(ids[prompt:])),
    )
    assert "no loss | " in str(first) and f"{first.targets} with a loss" in str(first)


def test_long_parts_lose_their_middle_and_there_may_be_fewer(tmp_path, tokenizer):
    held = silo(tmp_path, tokenizer, [{"text": "word " * 300}])
    (only,) = render_examples(held, tokenizer, 3)
    assert only.tokens == len(held.train.sequences[0])
    assert len(str(only)) < 2 * MOST_CHARS + 100


def test_nothing_of_the_data_is_changed(tmp_path, tokenizer):
    held = silo(tmp_path, tokenizer, [{"text": "the sum"}, {"text": "an array"}])
    before = [ids.clone() for ids in held.train.sequences]
    render_examples(held, tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(before, held.train.sequences, strict=True))
