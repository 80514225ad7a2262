"""Tokenising, once: examples become sequences of tokens, and only target tokens get a loss.

A sequence is `BOS prompt separator target EOS`, or `BOS text EOS` without a prompt. BOS is there
if the tokenizer adds one by itself, EOS if it has one. Prompt and target are encoded apart, so
that no token straddles them and generating from `prompt + PROMPT_SEPARATOR` starts with the tokens
that were trained.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flower_split.data.examples import Examples
from flower_split.errors import DataError

logger = logging.getLogger(__name__)

PROMPT_SEPARATOR = "\n"
"""What stands between prompt and target; it belongs to the prompt and gets no loss."""

_PROBE = "a"


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
) -> TokenizedDataset:
    """Tokenise all examples; those that are too long lose their end.

    Args:
        examples: Rows with the fields named by `text` and `prompt`.
        tokenizer: Of the model that is trained.
        text: Field with the text to learn: the target where there is a prompt.
        prompt: Field with the prompt; empty for plain language modelling.
        max_length: Tokens at which a sequence is cut off. An example whose prompt alone takes
            them up is dropped.

    Raises:
        DataError: a field is missing or no text, or every example was dropped.
    """
    targets = [examples.text(index, text) for index in range(len(examples))]
    prompts = (
        [examples.text(index, prompt) + PROMPT_SEPARATOR for index in range(len(examples))]
        if prompt
        else []
    )
    bos = _leading_special_tokens(tokenizer)
    eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    heads = [bos + ids for ids in _encode(tokenizer, prompts)] if prompt else [bos] * len(targets)
    sequences, lengths = list[Tensor](), list[int]()
    truncated = 0
    for head, target in zip(heads, _encode(tokenizer, targets), strict=True):
        whole = head + target + eos
        ids = whole[:max_length]
        # A causal model predicts each token from those before it, so never the first one.
        if len(ids) <= max(1, len(head)):
            continue
        truncated += len(ids) < len(whole)
        sequences.append(torch.tensor(ids, dtype=torch.int64))
        lengths.append(len(head))
    dropped = len(examples) - len(sequences)
    if examples and not sequences:
        raise DataError(
            f"{examples.origin}: none of {len(examples)} examples has a target token within "
            f"train.max-length {max_length}: raise it, or use shorter prompts or longer texts"
        )
    _log(examples, truncated=truncated, dropped=dropped, max_length=max_length)
    return TokenizedDataset(
        sequences=tuple(sequences),
        prompt_lengths=tuple(lengths),
        pad_id=_pad_id(tokenizer),
        truncated=truncated,
        dropped=dropped,
    )


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool = False
) -> list[list[int]]:
    if not texts:
        return []
    # Not verbose: the tokenizer would warn of texts that are cut off afterwards.
    encoded = tokenizer(
        list(texts), add_special_tokens=special, return_attention_mask=False, verbose=False
    )
    return [list(ids) for ids in encoded["input_ids"]]


def _leading_special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    (plain,) = _encode(tokenizer, [_PROBE])
    (special,) = _encode(tokenizer, [_PROBE], special=True)
    for start in range(len(special) - len(plain) + 1):
        if special[start : start + len(plain)] == plain:
            return special[:start]
    raise DataError(
        f"the tokenizer {type(tokenizer).__name__} puts special tokens inside a text; expected "
        "them before and after it only"
    )


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def _log(examples: Examples, *, truncated: int, dropped: int, max_length: int) -> None:
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
