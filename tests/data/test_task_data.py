"""Data of classifiers and masked language models: encoded as stock code does it, or refused."""

import json
from dataclasses import replace

import pytest
import torch
from task_models import LABELS, save_task_models
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding

from flower_split.config.sections import DataConfig
from flower_split.config.tasks import (
    MASKED_LM,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Task,
)
from flower_split.data import load_silo
from flower_split.data.batching import collate, eval_batches, train_batches
from flower_split.errors import ConfigError, DataError
from flower_split.segments import load_tokenizer, table_sizes

SEQUENCES = Task(name=SEQUENCE_CLASSIFICATION, labels=LABELS)
STARS = Task(name=SEQUENCE_CLASSIFICATION, labels=("1", "2", "3"))
TOKENS = Task(name=TOKEN_CLASSIFICATION, labels=LABELS)
MASKED = Task(name=MASKED_LM)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_task_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def silo(folders, tmp_path):
    def made(task, rows, family="bert", max_length=16, tokenizer=None, **fields):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_silo(
            DataConfig(path=str(path), eval_fraction=0.0, **fields),
            tokenizer or load_tokenizer(folders[family]),
            partition_id=None,
            num_partitions=None,
            max_length=max_length,
            seed=0,
            tables=table_sizes(folders[family], task=task),
            task=task,
        ).train

    return made


def test_pairs_are_those_of_the_stock_collator(silo, folders):
    rows = [
        {"text": "the sum of a list", "other": "array", "label": "yes"},
        {"text": "value", "other": "the axis returns", "label": 0},
    ]
    ours = collate(silo(SEQUENCES, rows, text_pair="other"), [0, 1])
    tokenizer = load_tokenizer(folders["bert"])
    encoded = [tokenizer(row["text"], row["other"]) for row in rows]
    theirs = DataCollatorWithPadding(tokenizer)(
        [{**one, "label": LABELS.index("yes") if i == 0 else 0} for i, one in enumerate(encoded)]
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours["token_type_ids"].any()


def test_words_are_those_of_the_stock_collator(silo, folders):
    rows = [
        {"text": ["sums", "of", "lists"], "label": ["no", "yes", 1]},
        {"text": ["array"], "label": [2]},
    ]
    ours = collate(silo(TOKENS, rows), [0, 1])
    assert ours["labels"].tolist() == [
        [-100, 0, -100, 2, 1, -100, -100],
        [-100, 2, *[-100] * 5],
    ]
    tokenizer = load_tokenizer(folders["bert"])
    encoded = [tokenizer(row["text"], is_split_into_words=True) for row in rows]
    theirs = DataCollatorForTokenClassification(tokenizer)(
        [{**one, "labels": [0] * len(one["input_ids"])} for one in encoded]
    )
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(ours[name], theirs[name])


def test_models_without_types_get_none(silo):
    batch = collate(silo(SEQUENCES, [{"text": "sum", "label": 1}], "llama"), [0])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_masks_follow_the_seed_and_the_pass(silo):
    data = silo(MASKED, [{"text": "the sum of the array"}, {"text": "list"}] * 3)
    rounds = [
        [batch["labels"] for batch in train_batches(data, 6, seed=s, silo=0, round_number=r)]
        for s, r in ((0, 1), (0, 1), (0, 2), (1, 1))
    ]
    assert torch.equal(rounds[0][0], rounds[1][0])
    assert not torch.equal(rounds[0][0], rounds[2][0])
    assert not torch.equal(rounds[0][0], rounds[3][0])
    held = eval_batches(data, 3)
    for one, other in zip(held, held, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
        ids, labels, mask = one["input_ids"], one["labels"], one["attention_mask"]
        assert ((labels == -100) | (mask == 1)).all()
        assert (ids[mask == 0] == 0).all()
        assert (labels != -100).any()
        assert not torch.isin(labels[labels != -100], torch.tensor([0, 1, 2])).any()


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        (
            SEQUENCES,
            {"text": "sum", "label": "perhaps"},
            r"not in model\.labels, .* no, maybe",
        ),
        (SEQUENCES, {"text": "sum", "label": 3}, r"none of the 3 of model\.labels, 0 to 2"),
        (SEQUENCES, {"text": "sum", "label": -1}, r"none of the 3"),
        (SEQUENCES, {"text": "sum", "label": True}, r"a bool"),
        (SEQUENCES, {"text": "sum", "label": 1.0}, r"a float"),
        (SEQUENCES, {"text": "sum", "label": None}, r"field 'label' is null"),
        (STARS, {"text": "sum", "label": 1}, r"labels as whole numbers.*in the order 0"),
        (STARS, {"text": "sum", "label": 3}, r"labels as whole numbers.*in the order 0"),
        (SEQUENCES, {"text": "sum"}, r"no field 'label'"),
        (SEQUENCES, {"text": ["sum"], "label": 1}, r"must be text, not list"),
        (TOKENS, {"text": "sum of", "label": [0, 1]}, r"must be a list of words"),
        (TOKENS, {"text": [], "label": []}, r"not be empty"),
        (TOKENS, {"text": ["sum", 5], "label": [0, 1]}, r"must be a list of words"),
        (TOKENS, {"text": ["sum", "of"], "label": [0]}, r"has 1 labels for 2 words"),
        (TOKENS, {"text": ["sum"], "label": "no"}, r"a list with a label for each word, not str"),
        (TOKENS, {"text": ["sum"], "label": ["perhaps"]}, r"not in model\.labels"),
        (MASKED, {"text": " "}, r"field 'text' is empty text"),
    ],
)
def test_what_is_no_example_of_the_task_is_told_with_its_line(silo, task, row, said):
    good = {
        SEQUENCES: {"text": "a", "label": 0},
        STARS: {"text": "a", "label": "1"},
        TOKENS: {"text": ["a"], "label": [0]},
    }
    with pytest.raises(DataError, match=f"line 2.*{said}") as told:
        silo(task, [good.get(task, {"text": "a"}), row])
    assert "perhaps" not in str(told.value)


def test_what_the_tokenizer_lacks_is_told(silo, folders):
    unmasked = load_tokenizer(folders["bert"])
    unmasked.mask_token = None
    with pytest.raises(DataError, match=r"no mask token, which model\.task 'masked-lm' needs"):
        silo(MASKED, [{"text": "sum"}], tokenizer=unmasked)
    tokenizer = load_tokenizer(folders["llama"])
    tokenizer.pad_token = None
    padded = silo(SEQUENCES, [{"text": "sum", "label": 0}], "llama", tokenizer=tokenizer)
    assert padded.pad_id == 0  # the model's
    with pytest.raises(DataError, match="has 98 tokens, and the model 64"):
        silo(SEQUENCES, [{"text": "sum " * 96, "label": 0}], max_length=200)


def test_padding_that_the_model_does_not_know_is_told(silo, folders, monkeypatch):
    sizes = replace(table_sizes(folders["llama"], task=SEQUENCES), pad_id=-1)
    monkeypatch.setattr(f"{__name__}.table_sizes", lambda *_, **__: sizes)
    with pytest.raises(DataError, match=r"its config\.json pads with the token -1"):
        silo(SEQUENCES, [{"text": "sum", "label": 0}], "llama")


def test_texts_without_a_token_to_guess_are_told(silo):
    data = silo(MASKED, [{"text": "sum"}], mlm_probability=1e-9)
    with pytest.raises(DataError, match=r"raise data\.mlm-probability"):
        next(iter(eval_batches(data, 1)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "sequence-classification"}, r"needs model\.labels"),
        ({"name": "token-classification", "labels": ("a", "")}, r"needs model\.labels"),
        ({"name": "sequence-classification", "labels": ("a", "a")}, "names 'a' twice"),
        ({"labels": ("a", "b")}, r"model\.labels would not be used with model\.task 'causal-lm'"),
        ({"name": "vision"}, r"model\.task"),
    ],
)
def test_labels_fit_the_task(fields, said):
    with pytest.raises(ConfigError, match=said):
        Task(**fields)
