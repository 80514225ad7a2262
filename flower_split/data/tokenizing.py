"""Tokenising, once: examples become sequences of tokens, and only target tokens get a loss.

A sequence is `BOS prompt separator target EOS`, or `BOS text EOS` without a prompt. BOS is there
if the tokenizer adds one by itself, EOS if it has one; a text that carries them, such as a rendered
chat template, gets no second ones. Prompt and target are encoded apart, so that no token straddles
them and generating from `prompt + PROMPT_SEPARATOR` starts with the tokens that were trained.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flower_split.data.examples import Examples
from flower_split.data.special_tokens import SpecialTokens, encode
from flower_split.errors import DataError
from flower_split.segments import TableSizes

logger = logging.getLogger(__name__)

PROMPT_SEPARATOR = "\n"
"""What stands between prompt and target; it belongs to the prompt and gets no loss."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedDataset:
    """Sequences of tokens, each with the length of its part that gets no loss."""

    sequences: tuple[Tensor, ...]
    """Token ids of every example: (tokens,) int64, not padded."""
    prompt_lengths: tuple[int, ...]
    """Leading tokens of every example without a loss: BOS, prompt and separator."""
    pad_id: int
    """Token id that fills up rows; attention mask and labels exclude it."""
    truncated: int = 0
    """Examples that were cut off at the maximum length."""
    dropped: int = 0
    """Examples left out, because no target token was within the maximum length."""

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def num_targets(self) -> int:
        """Tokens that get a loss; nothing predicts the first token of a sequence."""
        return sum(
            len(ids) - max(1, prompt)
            for ids, prompt in zip(self.sequences, self.prompt_lengths, strict=True)
        )


def tokenize(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text: str,
    prompt: str = "",
    max_length: int,
    tables: TableSizes | None = None,
) -> TokenizedDataset:
    """Tokenise all examples; those that are too long lose their end.

    Args:
        examples: Rows with the fields named by `text` and `prompt`.
        tokenizer: Of the model that is trained.
        text: Field with the text to learn: the target where there is a prompt.
        prompt: Field with the prompt; empty for plain language modelling.
        max_length: Tokens at which a sequence is cut off. An example whose prompt alone takes
            them up is dropped.
        tables: What the model knows; None does not check against it.

    Raises:
        DataError: a field is missing or no text, every example was dropped, or one has a token
            or a length that the model does not know.
    """
    targets = [examples.text(index, text) for index in range(len(examples))]
    prompts = (
        [examples.text(index, prompt) + PROMPT_SEPARATOR for index in range(len(examples))]
        if prompt
        else []
    )
    special = SpecialTokens(tokenizer)
    asked = encode(tokenizer, prompts) or [special.leading] * len(targets)
    sequences, lengths, kept = list[Tensor](), list[int](), list[int]()
    truncated = carried = 0
    for index, (ask, target) in enumerate(zip(asked, encode(tokenizer, targets), strict=True)):
        head = special.leading + special.without_leading(ask)
        whole = head + special.with_trailing(special.without_leading(target))
        added = len(special.trailing) + (len(special.leading) if prompt else 0)
        carried += len(whole) < len(ask) + len(target) + added
        ids = whole[:max_length]
        # A causal model predicts each token from those before it, so never the first one.
        if len(ids) <= max(1, len(head)):
            continue
        truncated += len(ids) < len(whole)
        sequences.append(torch.tensor(ids, dtype=torch.int64))
        lengths.append(len(head))
        kept.append(index)
    if tables is not None:
        check_known(examples, sequences, kept, tokenizer, tables)
    dropped = len(examples) - len(sequences)
    if examples and not sequences:
        raise DataError(
            f"{examples.origin}: none of {len(examples)} examples has a target token within "
            f"train.max-length {max_length}: raise it, or use shorter prompts or longer texts"
        )
    _log(examples, truncated=truncated, dropped=dropped, carried=carried, max_length=max_length)
    return TokenizedDataset(
        sequences=tuple(sequences),
        prompt_lengths=tuple(lengths),
        pad_id=special.pad_id(None if tables is None else tables.tokens),
        truncated=truncated,
        dropped=dropped,
    )


def check_known(
    examples: Examples,
    sequences: Sequence[Tensor],
    kept: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    tables: TableSizes,
) -> None:
    """Raise `DataError` if a sequence has a token or a position that the model does not know."""
    for ids, index in zip(sequences, kept, strict=True):
        if (largest := int(ids.max())) >= tables.tokens:
            raise DataError(
                f"{examples.where(index)}: the token id {largest} is beyond the model's embedding "
                f"table, which has {tables.tokens} rows; the tokenizer has {len(tokenizer)} "
                "tokens. Take the model's own tokenizer, or a model whose table was resized for "
                "the added tokens (resize_token_embeddings) and saved with it"
            )
        if tables.positions is not None and len(ids) > tables.positions:
            raise DataError(
                f"{examples.where(index)} has {len(ids)} tokens, and the model {tables.positions} "
                f"positions: set train.max-length to {tables.positions} or less"
            )


def _log(
    examples: Examples, *, truncated: int, dropped: int, carried: int, max_length: int
) -> None:
    if carried:
        logger.info(
            "%s: %d of %d examples carry the tokenizer's special tokens already, which are not "
            "added again",
            examples.origin,
            carried,
            len(examples),
        )
    if truncated:
        logger.info(
            "%s: %d of %d examples were cut off at %d tokens",
            examples.origin,
            truncated,
            len(examples),
            max_length,
        )
    if dropped:
        logger.warning(
            "%s: %d of %d examples were dropped: no target token within train.max-length %d",
            examples.origin,
            dropped,
            len(examples),
            max_length,
        )
