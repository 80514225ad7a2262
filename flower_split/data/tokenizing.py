"""Tokenising: examples become sequences, of which exactly the target's tokens get a loss."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from flower_split.config.data import DataConfig
from flower_split.data.examples import Examples
from flower_split.data.reading.bad_rows import BadRows
from flower_split.data.sequences import Ragged, TokenizedDataset
from flower_split.data.shapes.chats import Chats
from flower_split.data.shapes.prompting import PROMPT_SEPARATOR, Parts, Prompting
from flower_split.data.special_tokens import SpecialTokens, encode
from flower_split.errors import DataError
from flower_split.segments import TableSizes

__all__ = ["PROMPT_SEPARATOR", "TokenizedDataset", "check_known", "tokenize", "tokenize_silo"]


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """Token ids of an example, before they are cut."""

    index: int
    ids: list[int]
    prompt: int
    """Leading tokens without a loss."""
    learnt: list[bool] | None = None
    """Of a chat: which tokens have one."""
    carried: bool = False


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
    config = DataConfig(text=text, prompt=prompt)
    return tokenize_silo(examples, tokenizer, config, max_length=max_length, tables=tables)


def tokenize_silo(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    *,
    max_length: int,
    tables: TableSizes | None = None,
    bad: BadRows | None = None,
) -> TokenizedDataset:
    """Tokenise all examples as `config` says: texts, prompts with answers, or chats.

    Args:
        examples: Rows with the fields that `config` names.
        tokenizer: Of the model that is trained.
        config: Names fields, and says what becomes of long texts.
        max_length: Tokens at which a sequence is cut off, or divided.
        tables: What the model knows; None does not check against it.
        bad: What becomes of bad rows; None raises the first one's error.

    Raises:
        DataError: as for `tokenize`, or the tokenizer's chat template does not do.
    """
    bad = bad or BadRows()
    special = SpecialTokens(tokenizer)
    divides = divides_texts(examples, config)
    made = _Made(examples, tokenizer, max_length, divides=divides, tables=tables)
    before = bad.count
    source = (
        _chats(examples, tokenizer, config, bad)
        if config.messages
        else _texts(examples, tokenizer, special, config, bad)
    )
    for encoded in source:
        made.add(encoded)
    if len(examples) and not made.sequences:
        if bad.count - before == len(examples):
            raise bad.refuse_all(examples.origin)
        raise DataError(
            f"{examples.origin}: none of {len(examples)} examples has a target token within "
            f"train.max-length {max_length}: raise it, or use shorter prompts or longer texts"
        )
    return TokenizedDataset(
        sequences=made.sequences,
        prompt_lengths=tuple(made.prompts),
        pad_id=special.pad_id(None if tables is None else tables.tokens),
        learnt=made.learnt,
        examples=made.kept,
        truncated=made.truncated,
        divided=made.divided,
        dropped=made.dropped,
        lost=made.lost,
        carried=made.carried,
    )


def divides_texts(examples: Examples, config: DataConfig) -> bool:
    """Whether a text that is too long becomes several sequences."""
    if config.prompt or config.template or config.messages:
        return False
    return config.long_texts == "split" or (config.long_texts == "auto" and examples.plain_text)


def _texts(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    special: SpecialTokens,
    config: DataConfig,
    bad: BadRows,
) -> Iterator[_Encoded]:
    prompting = Prompting(config)
    for indices, rows in examples.batches():
        kept, parts = list[int](), list[Parts]()
        for index, row in zip(indices, rows, strict=True):
            try:
                parts.append(prompting.parts(examples, index, row))
                kept.append(index)
            except DataError as error:
                bad.take(error, examples.mark(index))
        prompts = [part.prompt for part in parts if part.prompt is not None]
        asked = encode(tokenizer, prompts) or [special.leading] * len(parts)
        targets = encode(tokenizer, [part.target for part in parts])
        for index, ask, target in zip(kept, asked, targets, strict=True):
            head = special.leading + special.without_leading(ask)
            whole = head + special.with_trailing(special.without_leading(target))
            added = len(special.trailing) + (len(special.leading) if prompts else 0)
            carried = len(whole) < len(ask) + len(target) + added
            yield _Encoded(index=index, ids=whole, prompt=len(head), carried=carried)
    prompting.check_seen(examples)


def _chats(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, config: DataConfig, bad: BadRows
) -> Iterator[_Encoded]:
    chats = Chats(tokenizer, config.messages, config.tools)
    for indices, rows in examples.batches():
        kept, texts, spans = list[int](), list[str](), list[list[tuple[int, int]]]()
        for index, row in zip(indices, rows, strict=True):
            try:
                text, of_assistant = chats.written(examples, index, row)
            except DataError as error:
                bad.take(error, examples.mark(index))
                continue
            kept.append(index)
            texts.append(text)
            spans.append(of_assistant)
        if not texts:
            continue
        encoded = tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        offsets: Sequence[Sequence[tuple[int, int]]] = encoded["offset_mapping"]
        for index, ids, places, wanted in zip(
            kept, encoded["input_ids"], offsets, spans, strict=True
        ):
            learnt = in_spans(places, wanted)
            prompt = learnt.index(True) if True in learnt else len(ids)
            yield _Encoded(index=index, ids=list(ids), prompt=prompt, learnt=learnt)


def in_spans(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Which tokens have a character of one of the spans, as transformers' own marks count them.

    Args:
        offsets: First character of every token and the one after its last. Blanks before a token
            are its own, whether or not the tokenizer counts them.
        spans: Disjoint, in their order.
    """
    found, before, number = list[bool](), 0, 0
    for first, last in offsets:
        first = min(first, before)
        while number < len(spans) and spans[number][1] <= first:
            number += 1
        found.append(number < len(spans) and last > first and last > spans[number][0])
        before = max(before, last)
    return found


class _Made:
    """What the sequences of a data set come to, one example after the other."""

    def __init__(
        self,
        examples: Examples,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        divides: bool,
        tables: TableSizes | None,
    ) -> None:
        self._examples = examples
        self._tokenizer = tokenizer
        self._most = max_length
        self._divides = divides
        self._tables = tables
        self.sequences, self.learnt = Ragged(), Ragged()
        self.prompts = array("i")
        self.kept = self.truncated = self.divided = self.dropped = self.carried = 0
        self.lost = 0

    def add(self, encoded: _Encoded) -> None:
        """Cut or divide an example's tokens, and keep them."""
        self.carried += encoded.carried
        ids, prompt = encoded.ids, encoded.prompt
        if self._divides and len(ids) > self._most:
            for start, end in _pieces(len(ids), self._most):
                self._keep(encoded.index, ids[start:end], max(0, prompt - start), None)
                self.kept += 1
            self.divided += 1
            return
        cut = ids[: self._most]
        learnt = None if encoded.learnt is None else encoded.learnt[: self._most]
        # A causal model predicts each token from those before it, so never the first one.
        if len(cut) <= max(1, prompt) or (learnt is not None and True not in learnt[1:]):
            self.dropped += 1
            self.lost += len(ids)
            return
        self.lost += len(ids) - len(cut)
        self.kept += 1
        self.truncated += len(cut) < len(ids)
        self._keep(encoded.index, cut, prompt, learnt)

    def _keep(self, index: int, ids: list[int], prompt: int, learnt: list[bool] | None) -> None:
        if self._tables is not None:
            check_known(self._examples, index, ids, self._tokenizer, self._tables)
        self.sequences.append(ids)
        self.prompts.append(prompt)
        if learnt is not None:
            self.learnt.append(learnt)


def _pieces(length: int, most: int) -> Iterator[tuple[int, int]]:
    """Places at which a text is divided into sequences of `most` tokens, none of a single one."""
    start = 0
    while start < length:
        end = min(start + most, length)
        if length - end == 1 and most > 2:
            end -= 1  # nothing would predict the last token, if it were alone
        yield start, end
        start = end


def check_known(
    examples: Examples,
    index: int,
    ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    tables: TableSizes,
) -> None:
    """Raise `DataError` if a sequence has a token or a position that the model does not know."""
    if (largest := max(ids)) >= tables.tokens:
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
