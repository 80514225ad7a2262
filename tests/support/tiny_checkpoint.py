"""A tiny language model with a tokenizer in a folder, and tiny silos' texts."""

import json
from pathlib import Path

import torch
from tiny_models import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ("the", "a", "sum", "of", "array", "value", "returns", "number", "list", "axis", "given")
SILOS = 3

_LLAMA = {"hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 256}
_GPT2 = {
    "n_embd": 16,
    "n_positions": 256,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}


def save_tiny_model(folder: Path, family: str = "llama", layers: int = 4) -> Path:
    """A random model of `family` and a word tokenizer in `folder`."""
    vocabulary = {word: i for i, word in enumerate(("<pad>", "<s>", "</s>", "<unk>", *WORDS))}
    own = _LLAMA if family == "llama" else _GPT2
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = tiny_model(family, layers, vocab_size=len(vocabulary), **own, **ends)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    return folder


def save_texts(path: Path, num_examples: int = 36) -> Path:
    """JSON lines with a text, in which some words are frequent, and the silo it belongs to."""
    generator = torch.Generator().manual_seed(1)
    frequency = 0.6 ** torch.arange(len(WORDS))
    with path.open("w", encoding="utf-8") as file:
        for index in range(num_examples):
            length = int(torch.randint(4, 12, (), generator=generator))
            picks = frequency.multinomial(length, replacement=True, generator=generator).tolist()
            row = {
                "prompt": WORDS[index % len(WORDS)],
                "text": " ".join(WORDS[p] for p in picks),
                "silo": f"s{index % SILOS}",
            }
            file.write(json.dumps(row) + "\n")
    return path


def save_tiny_run(folder):
    """`folder` with `model` and `texts.jsonl` in it, for `tiny_run_config`."""
    save_tiny_model(folder / "model")
    save_texts(folder / "texts.jsonl")
    return folder


def tiny_run_config(folder, **changes):
    """The run config of two short rounds of three silos with what `save_tiny_run` made."""
    return {
        "model.name": str(folder / "model"),
        "data.path": str(folder / "texts.jsonl"),
        "data.eval-fraction": 0.25,
        "train.batch-size": 3,
        "train.learning-rate": 1e-2,
        "train.max-length": 16,
        "lora.r": 2,
        "num-server-rounds": 2,
        "round-timeout": 60.0,
        "strategy.min-nodes": 3,
        **changes,
    }
