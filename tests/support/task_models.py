"""Tiny models of the tasks with a tokenizer, labelled data, and the uncut model of a task."""

import json
from functools import partial
from pathlib import Path

import torch
from tiny_checkpoint import WORDS, save_tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)
from uncut_model import base_model

from flower_split.config.tasks import MASKED_LM, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION

LABELS = ("no", "maybe", "yes")
AUTO = {
    SEQUENCE_CLASSIFICATION: AutoModelForSequenceClassification,
    TOKEN_CLASSIFICATION: AutoModelForTokenClassification,
    MASKED_LM: AutoModelForMaskedLM,
}
CASES = {
    "llama, sequences": ("llama", SEQUENCE_CLASSIFICATION),
    "bert, sequences": ("bert", SEQUENCE_CLASSIFICATION),
    "llama, tokens": ("llama", TOKEN_CLASSIFICATION),
    "bert, tokens": ("bert", TOKEN_CLASSIFICATION),
    "bert, masked": ("bert", MASKED_LM),
}


def save_task_models(root: Path) -> dict[str, Path]:
    """The folders of a decoder and of an encoder, by family."""
    return {family: save_task_model(root / family, family) for family in ("llama", "bert")}


def save_task_model(folder: Path, family: str) -> Path:
    """A random base model of `family`, without a classifier, and a word tokenizer."""
    if family != "bert":
        save_tiny_model(folder, family)
        config = json.loads((folder / "config.json").read_text())
        config["classifier_dropout"] = 0.0
        (folder / "config.json").write_text(json.dumps(config))
        return folder
    special = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")
    vocabulary = {word: i for i, word in enumerate((*special, *WORDS, "##s"))}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    bert = AutoModelForMaskedLM.from_pretrained(folder)
    whole = BertModel(config)
    whole.load_state_dict(bert.bert.state_dict(), strict=False)
    bert.bert = whole  # with a pooler, as published checkpoints have it
    bert.save_pretrained(folder)
    words = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder


def save_rows(path: Path, task: str, examples: int = 24) -> Path:
    """JSON lines whose labels follow from the words."""
    generator = torch.Generator().manual_seed(2)
    with path.open("w", encoding="utf-8") as file:
        for index in range(examples):
            length = int(torch.randint(3, 9, (), generator=generator))
            picks = torch.randint(0, len(WORDS), (length,), generator=generator).tolist()
            words = [WORDS[pick] for pick in picks]
            if index % 3 == 0:
                words[0] += "s"  # two tokens of BERT's
            row = {"text": " ".join(words), "label": LABELS[picks[0] % 3]}
            if task == TOKEN_CLASSIFICATION:
                row = {"text": words, "label": [pick % 3 for pick in picks]}
            elif task == MASKED_LM:
                del row["label"]
            file.write(json.dumps(row) + "\n")
    return path


def uncut_base(task: str):
    """Loads the uncut model of a task."""
    labels = {} if task == MASKED_LM else {"num_labels": len(LABELS)}
    return partial(base_model, auto=AUTO[task], **labels)


def task_values(task: str, data: Path) -> dict[str, object]:
    """The run-config keys of a task."""
    labels = {} if task == MASKED_LM else {"model.labels": ", ".join(LABELS)}
    return {"model.task": task, "data.path": str(data), "data.eval-fraction": 0.25, **labels}
