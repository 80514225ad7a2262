"""Pretraining of the quickstart's base model on the docstrings of Python's standard library.

Rebuilds `flower_split/quickstart/base`::

    python examples/quickstart/pretrain.py --out base

The corpus is the standard library of the running interpreter, the order of the data and the
initial weights follow from `--seed` and the number of threads is fixed, so that the same
interpreter and the same versions of torch, transformers and tokenizers on the same kind of
processor give the same weights again. It takes about a quarter of an hour on two cores.
"""

import argparse
import hashlib
import json
import math
import platform
import sysconfig
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flower_split.quickstart.docstrings import collect, python_files

POSITIONS = 1024
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
NOT_THE_LIBRARY = frozenset({"site-packages", "test", "tests", "idle_test", "__pycache__"})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that the result depends on besides the corpus and the versions."""

    vocabulary: int = 2048
    hidden: int = 128
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 352
    context: int = 256
    batch: int = 8
    steps: int = 1600
    warmup: int = 80
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    held_out: float = 0.03
    threads: int = 2
    seed: int = 0


def standard_library() -> list[str]:
    """The docstrings of the running interpreter's standard library, sorted."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(collect(python_files(root, skip=NOT_THE_LIBRARY), min_chars=30))


def is_held_out(text: str, share: float) -> bool:
    """Whether a docstring is kept for evaluation: decided by its own hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) < share * 2**32


def train_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts the `bos` token before every text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIAL.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bos = SPECIAL["bos_token"]
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bpe.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, padding_side="right", model_max_length=POSITIONS, **SPECIAL
    )


def blocks(texts: list[str], tokenizer: PreTrainedTokenizerFast, context: int) -> torch.Tensor:
    """The texts as one stream `<s> text </s> …`, as rows of `context` tokens, (N, context)."""
    stream: list[int] = []
    for ids in tokenizer(texts)["input_ids"]:
        stream += [*ids, tokenizer.eos_token_id]
    rows = len(stream) // context
    return torch.tensor(stream[: rows * context]).view(rows, context)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    """Token perplexity over rows of (N, context) token ids."""
    model.eval()
    losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in rows.split(16)]
    model.train()
    return math.exp(sum(losses) / len(rows))


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised Llama with tied embeddings."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train(model: LlamaForCausalLM, rows: torch.Tensor, valid: torch.Tensor, recipe: Recipe) -> None:
    """AdamW over `recipe.steps` batches of shuffled rows; prints the held-out perplexity."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=recipe.weight_decay,
    )
    shuffle = torch.Generator().manual_seed(recipe.seed)
    order = torch.empty(0, dtype=torch.long)
    started = time.monotonic()
    for step in range(recipe.steps):
        if len(order) < recipe.batch:
            order = torch.cat([order, torch.randperm(len(rows), generator=shuffle)])
        batch, order = rows[order[: recipe.batch]], order[recipe.batch :]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            print(
                f"step {step + 1}: loss {loss.item():.3f}, "
                f"held-out perplexity {perplexity(model, valid):.2f}, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )


def main() -> None:
    """Build corpus, tokenizer and model, train, and write the folder with its record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    arguments = parser.parse_args()
    recipe = Recipe(steps=arguments.steps, seed=arguments.seed)

    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    texts = standard_library()
    kept = [text for text in texts if not is_held_out(text, recipe.held_out)]
    held_out = [text for text in texts if is_held_out(text, recipe.held_out)]
    tokenizer = train_tokenizer(kept, recipe.vocabulary)
    rows = blocks(kept, tokenizer, recipe.context)
    valid = blocks(held_out, tokenizer, recipe.context)
    model = build_model(recipe, tokenizer)
    print(
        f"{len(kept)} docstrings, {rows.numel()} tokens ({valid.numel()} held out), "
        f"{model.num_parameters()} parameters",
        flush=True,
    )
    train(model, rows, valid, recipe)

    # bfloat16 halves the file; the record's perplexity is that of the rounded weights.
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    rounded = LlamaForCausalLM.from_pretrained(arguments.out, dtype=torch.float32)
    record = {
        "recipe": asdict(recipe),
        "parameters": model.num_parameters(),
        "corpus": {
            "source": "docstrings of Python's standard library",
            "python": platform.python_version(),
            "docstrings": len(texts),
            "train_tokens": rows.numel(),
            "held_out_tokens": valid.numel(),
            "sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        },
        "held_out_perplexity": round(perplexity(rounded, valid), 3),
        "seconds": round(time.monotonic() - started),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (arguments.out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
