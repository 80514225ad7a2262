"""The tables of a model that tokens and their places are looked up in."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from flower_split.segments.loading.skeleton import load_skeleton

_LEARNED = {"wpe", "embed_positions", "position_embeddings", "position_embedding"}


@dataclass(frozen=True, kw_only=True)
class TableSizes:
    """How many tokens and positions a model knows."""

    tokens: int
    """Rows of the embedding table: fewer or more than the tokenizer's tokens."""
    positions: int | None
    """Tokens of the longest row; None where positions are computed, so that none is too long."""


def table_sizes(source: str | Path, revision: str = "") -> TableSizes:
    """The sizes of a model's tables, of which no weight is read.

    Args:
        source: As for `resolve_source`.
        revision: Commit, tag or branch on the hub; empty for the default branch.

    Raises:
        WeightsError: there is no such model, or its configuration cannot be read.
        UnsupportedFamilyError: it is no causal language model of transformers.
    """
    skeleton = load_skeleton(source, revision)
    tokens: nn.Module = skeleton.get_input_embeddings()
    names = [name for name, module in skeleton.named_modules() if isinstance(module, nn.Embedding)]
    names += [name for name, _ in skeleton.named_buffers()]  # GPT-J's are computed beforehand
    learned = any(name.rpartition(".")[2] in _LEARNED for name in names)
    text = skeleton.config.get_text_config(decoder=True)
    return TableSizes(
        tokens=len(tokens.get_parameter("weight")),
        positions=int(text.max_position_embeddings) if learned else None,
    )
