"""The tables of a model that tokens and their places are looked up in."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from flower_split.config.tasks import CAUSAL, Task
from flower_split.errors import ConfigError
from flower_split.segments.loading.skeleton import load_skeleton
from flower_split.segments.refusals import context_length

_LEARNED = {"wpe", "embed_positions", "position_embeddings", "position_embedding"}


@dataclass(frozen=True, kw_only=True)
class TableSizes:
    """How many tokens and positions a model knows."""

    tokens: int
    """Rows of the embedding table: fewer or more than the tokenizer's tokens."""
    positions: int | None
    """Tokens of the longest row; None where positions are computed, so that none is too long."""
    types: int = 0
    """Types of tokens, by which a pair of texts is told apart; 0 where there are none."""
    pad_id: int | None = None
    """The token that the model takes for padding, where its configuration says."""
    context: int = 0
    """Tokens of the longest text that the model was made for; 0 where it does not say."""

    def longest(self, max_length: int, before: int = 0) -> int:
        """Tokens at which a run's sequences are cut off: `max_length`, or what the model takes.

        Args:
            max_length: `train.max-length`.
            before: Virtual tokens before every sequence.

        Raises:
            ConfigError: the virtual tokens leave no place for a sequence.
        """
        if not self.context:
            return max_length
        if self.context - before < 2:
            raise ConfigError(
                f"peft.num-virtual-tokens {before} leaves no place for a text in the "
                f"{self.context} tokens of the model's context: lower it"
            )
        return min(max_length, self.context - before)


def table_sizes(source: str | Path, revision: str = "", task: Task = CAUSAL) -> TableSizes:
    """The sizes of a model's tables, of which no weight is read.

    Args:
        source: As for `resolve_source`.
        revision: Commit, tag or branch on the hub; empty for the default branch.
        task: Of the model.

    Raises:
        WeightsError: there is no such model, or its configuration cannot be read.
        UnsupportedFamilyError: transformers has no such model for the task.
    """
    return tables_of(load_skeleton(source, revision, task))


def tables_of(skeleton: PreTrainedModel) -> TableSizes:
    """The same of a model that is at hand, on the meta device or not."""
    tokens: nn.Module = skeleton.get_input_embeddings()
    tables = {n: m for n, m in skeleton.named_modules() if isinstance(m, nn.Embedding)}
    names = [*tables]
    names += [name for name, _ in skeleton.named_buffers()]  # GPT-J's are computed beforehand
    learned = any(name.rpartition(".")[2] in _LEARNED for name in names)
    text = skeleton.config.get_text_config(decoder=True)
    positions = int(text.max_position_embeddings) if learned else None
    types = 0
    for name, table in tables.items():
        last = name.rpartition(".")[2]
        if last == "token_type_embeddings":
            types = table.num_embeddings
        elif last in _LEARNED and table.padding_idx is not None and positions is not None:
            positions -= table.padding_idx + 1  # RoBERTa counts from there
    return TableSizes(
        tokens=len(tokens.get_parameter("weight")),
        positions=positions,
        types=types,
        pad_id=text.pad_token_id,
        context=context_length(skeleton.config) if positions is None else positions,
    )
