"""Data of the tasks beside causal language modelling: encoded by the tokenizer's own call.

Texts get the special tokens that the tokenizer gives them. Words of a token classifier keep their
label on their first token, and the loss looks at no other one.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from flower_split.config.sections import DataConfig
from flower_split.config.tasks import (
    MASKED_LM,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Task,
)
from flower_split.data.examples import Examples, Row
from flower_split.data.labels import label_id, tags_of, words_of
from flower_split.data.reading.bad_rows import BadRows
from flower_split.data.sequences import Ragged, Scalars, lengths_of
from flower_split.data.tokenizing import check_known
from flower_split.errors import DataError
from flower_split.optimization.loss import IGNORED
from flower_split.segments import TableSizes

_DRAWS = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskDataset:
    """Encoded examples, each with its label or labels."""

    sequences: Sequence[Tensor]
    """Token ids of every example: (tokens,) int64, not padded."""
    labels: Sequence[Tensor]
    """Of every example: () of a sequence, (tokens,) of tokens; none where they are drawn."""
    types: Sequence[Tensor]
    """Types of the tokens, (tokens,) int64; none where the model has none."""
    pad_id: int
    """Token id that fills up rows."""
    masking: DataCollatorForLanguageModeling | None = None
    """Draws the tokens that are to be guessed; None where labels are given."""
    truncated: int = 0
    """Examples that were cut off at the maximum length."""
    dropped: int = 0
    """Examples left out, because no labelled token was within the maximum length."""

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def num_examples(self) -> int:
        """Examples that the sequences were made of: one each."""
        return len(self.sequences)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(lengths_of(self.sequences))

    @property
    def num_targets(self) -> int | None:
        """Labels; None where the tokens to guess are drawn anew for every pass."""
        if not self.labels:
            return None
        return sum(int((labels != IGNORED).sum()) for labels in self.labels)

    def collate(self, rows: Sequence[int], seed: int) -> dict[str, Tensor]:
        """The batch of the examples `rows`, padded on the right to the longest.

        Args:
            rows: Their places.
            seed: Of the masking.
        """
        batch = {
            "input_ids": _padded([self.sequences[row] for row in rows], self.pad_id),
            "attention_mask": _padded([torch.ones_like(self.sequences[row]) for row in rows], 0),
        }
        if self.types:
            batch["token_type_ids"] = _padded([self.types[row] for row in rows], 0)
        if self.labels:
            held = [self.labels[row] for row in rows]
            stacked = held[0].dim() == 0
            batch["labels"] = torch.stack(held) if stacked else _padded(held, IGNORED)
        return batch if self.masking is None else _masked(batch, self.masking, self.pad_id, seed)


def encode_task(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    task: Task,
    *,
    max_length: int,
    tables: TableSizes | None = None,
    bad: BadRows | None = None,
) -> TaskDataset:
    """Encode all examples; those that are too long lose their end.

    Args:
        examples: Rows with the fields that `config` names.
        tokenizer: Of the model that is trained.
        config: Names the fields.
        task: Another one than causal language modelling.
        max_length: Tokens at which a sequence is cut off.
        tables: What the model knows; None does not check against it.
        bad: What becomes of bad rows; None raises the first one's error.

    Raises:
        DataError: a field is missing or of another kind, a label is unknown, the tokenizer lacks
            what the task needs, or an example has a token or a length that the model does not
            know.
    """
    pad_id = _pad_id(tokenizer, tables)
    bad = bad or BadRows()
    sequences, types = Ragged(), Ragged()
    labels: Ragged | Scalars = Scalars() if task.name == SEQUENCE_CLASSIFICATION else Ragged()
    typed = tables is None or tables.types > 1
    truncated = dropped = 0
    for indices, rows in examples.batches():
        for index, row in zip(indices, rows, strict=True):
            try:
                encoded, label = _encode(examples, index, row, tokenizer, config, task, max_length)
            except DataError as error:
                bad.take(error, examples.mark(index))
                continue
            if label is not None and bool((label == IGNORED).all()):
                dropped += 1
                continue
            truncated += _was_cut(encoded)
            ids: list[int] = encoded["input_ids"]
            if tables is not None:
                check_known(examples, index, ids, tokenizer, tables)
            sequences.append(ids)
            if label is not None and isinstance(labels, Scalars):
                labels.append(int(label))
            elif label is not None and isinstance(labels, Ragged):
                labels.append(label.tolist())
            if typed and "token_type_ids" in encoded:
                types.append(encoded["token_type_ids"])
    if len(examples) and not sequences:
        if not dropped:
            raise bad.refuse_all(examples.origin)
        raise DataError(
            f"{examples.origin}: none of {len(examples)} examples has a labelled token within "
            f"train.max-length {max_length}: raise it"
        )
    return TaskDataset(
        sequences=sequences,
        labels=labels,
        types=types,
        pad_id=pad_id,
        masking=_masking(tokenizer, config) if task.name == MASKED_LM else None,
        truncated=truncated,
        dropped=dropped,
    )


def _was_cut(encoded: Any) -> bool:
    """Whether the tokenizer left some of its tokens out; a slow one does not tell."""
    return any(part.overflowing for part in getattr(encoded, "encodings", None) or ())


def _encode(
    examples: Examples,
    index: int,
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    task: Task,
    max_length: int,
) -> tuple[dict[str, Any], Tensor | None]:
    """The tokenizer's encoding of an example, and its labels where it has some."""
    options: dict[str, Any] = {"truncation": True, "max_length": max_length}
    call: Any = tokenizer
    if task.name != TOKEN_CLASSIFICATION:
        texts = [examples.text(index, config.text, row)]
        if config.text_pair:
            texts.append(examples.text(index, config.text_pair, row))
        encoded = call(*texts, **options)
        if task.name != SEQUENCE_CLASSIFICATION:
            return encoded, None
        value = examples.value(index, config.label, row)
        return encoded, torch.tensor(label_id(examples, index, value, config.label, task))
    words = words_of(examples, index, config.text)
    tags = tags_of(examples, index, config.label, len(words), task)
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not tell which token is of which word: give the "
            "model's folder a fast tokenizer (tokenizer.json)"
        )
    try:
        encoded = call(words, is_split_into_words=True, **options)
    except (AssertionError, ValueError) as error:
        raise DataError(
            f"the tokenizer does not take words: {error}. Save it in the model's folder with the "
            "option that it names"
        ) from error
    found, before = list[int](), None
    for word in encoded.word_ids():
        first = word is not None and word != before
        found.append(tags[word] if first else IGNORED)
        before = word
    return encoded, torch.tensor(found, dtype=torch.int64)


def _pad_id(tokenizer: PreTrainedTokenizerBase, tables: TableSizes | None) -> int:
    """The padding: the model's own, by which a decoder finds a row's last token, or the
    tokenizer's."""
    own = None if tables is None else tables.pad_id
    found = tokenizer.pad_token_id if own is None else own
    if found is None:
        raise DataError(
            "neither the model's config.json nor its tokenizer has a padding token: set pad_token "
            "in tokenizer_config.json, such as to the end of text, or pad_token_id in config.json"
        )
    if tables is not None and not 0 <= found < tables.tokens:
        where = "its tokenizer" if own is None else "its config.json"
        raise DataError(
            f"the model knows {tables.tokens} tokens, and {where} pads with the token {found}: set "
            "pad_token_id in config.json to one of them, such as that of the end of text"
        )
    return int(found)


def _masking(
    tokenizer: PreTrainedTokenizerBase, config: DataConfig
) -> DataCollatorForLanguageModeling:
    if tokenizer.mask_token_id is None:
        raise DataError(
            "the tokenizer has no mask token, which model.task 'masked-lm' needs: set mask_token "
            "in tokenizer_config.json"
        )
    return DataCollatorForLanguageModeling(
        tokenizer, mlm=True, mlm_probability=config.mlm_probability
    )


def _masked(
    batch: dict[str, Tensor], masking: DataCollatorForLanguageModeling, pad_id: int, seed: int
) -> dict[str, Tensor]:
    """`batch` with some tokens to be guessed, drawn by transformers' own collator.

    It is drawn anew while there is none, as happens to short texts: such a batch has no loss.
    """
    padding = batch["attention_mask"] == 0
    own = copy.copy(masking)  # silos may draw at once, in threads of one process
    own.generator = torch.Generator().manual_seed(seed)
    for _ in range(_DRAWS):
        ids, labels = own.torch_mask_tokens(batch["input_ids"].clone())
        ids, labels = ids.masked_fill(padding, pad_id), labels.masked_fill(padding, IGNORED)
        if bool((labels != IGNORED).any()):
            return {**batch, "input_ids": ids, "labels": labels}
    raise DataError(
        f"no token of {len(padding)} texts was drawn to be guessed, {_DRAWS} times: raise "
        "data.mlm-probability or train.batch-size, or use longer texts"
    )


def _padded(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
