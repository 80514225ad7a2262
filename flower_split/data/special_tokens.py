"""The special tokens around a text, each of them once.

A text may carry them already: a chat template writes them, and a tokenizer takes what reads like
one for one.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from flower_split.errors import DataError

_PROBE = "a"


class SpecialTokens:
    """What a tokenizer puts before and after a text.

    Args:
        tokenizer: Of the model that is trained.

    Raises:
        DataError: it puts special tokens inside a text.
    """

    leading: list[int]
    """BOS, where the tokenizer adds one by itself."""
    trailing: list[int]
    """EOS, where the tokenizer has one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.leading = _leading(tokenizer)
        end = tokenizer.eos_token_id
        self.trailing = [] if end is None else [int(end)]

    def without_leading(self, ids: list[int]) -> list[int]:
        """`ids` from behind the leading special tokens on, however often they stand there.

        Blanks before them go too.
        """
        size = len(self.leading)
        while size and self.leading[0] in ids:
            start = ids.index(self.leading[0])
            if ids[start : start + size] != self.leading or not self._blank(ids[:start]):
                break
            ids = ids[start + size :]
        return ids

    def with_trailing(self, ids: list[int]) -> list[int]:
        """`ids` with EOS at the end; as they are where nothing but blanks follows theirs."""
        if not self.trailing:
            return ids
        end = self.trailing[0]
        if end not in ids:
            return ids + self.trailing
        last = len(ids) - ids[::-1].index(end)
        if not self._blank(ids[last:]):
            return ids + self.trailing
        while last > 1 and ids[last - 2] == end:
            ids, last = [*ids[: last - 1], *ids[last:]], last - 1
        return ids

    def pad_id(self, table_size: int | None = None) -> int:
        """An id for places that are masked.

        Args:
            table_size: Rows of the model's embedding table, None where it is not known. An id that
                it does not have is not taken: the model looks masked places up, too.
        """
        for token_id in (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id):
            if token_id is not None and (table_size is None or token_id < table_size):
                return int(token_id)
        return 0

    def _blank(self, ids: list[int]) -> bool:
        return not ids or not str(self._tokenizer.decode(ids)).strip()


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool = False
) -> list[list[int]]:
    """Token ids of every text, with the special tokens of the tokenizer or without."""
    if not texts:
        return []
    # Not verbose: the tokenizer would warn of texts that are cut off afterwards.
    encoded = tokenizer(
        list(texts), add_special_tokens=special, return_attention_mask=False, verbose=False
    )
    return [list(ids) for ids in encoded["input_ids"]]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of what is to be continued, as a prompt is trained: BOS once, and no EOS."""
    special = SpecialTokens(tokenizer)
    (ids,) = encode(tokenizer, [prompt])
    return special.leading + special.without_leading(ids)


def _leading(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    (plain,) = encode(tokenizer, [_PROBE])
    (special,) = encode(tokenizer, [_PROBE], special=True)
    for start in range(len(special) - len(plain) + 1):
        if special[start : start + len(plain)] == plain:
            return special[:start]
    raise DataError(
        f"the tokenizer {type(tokenizer).__name__} puts special tokens inside a text; expected "
        "them before and after it only"
    )
