"""Preference pairs: a prompt with a better and a worse answer, for trainers such as TRL's.

The ready-made ClientApp has no loss for them; a ClientApp of one's own hands them to its trainer.
"""

import itertools
from typing import Any, TypedDict

from flower_split.config.data import DataConfig
from flower_split.data.examples import Examples, Row
from flower_split.data.reading.bad_rows import BadRows
from flower_split.data.shapes.chats import chat_messages
from flower_split.data.shapes.prompting import PROMPT_SEPARATOR
from flower_split.errors import DataError

Answer = str | list[dict[str, Any]]
"""A text, or the messages of a chat."""


class Preference(TypedDict):
    """A row as TRL's trainers take it."""

    prompt: Answer
    chosen: Answer
    rejected: Answer


def preferences(
    examples: Examples, config: DataConfig, bad: BadRows | None = None
) -> list[Preference]:
    """The preference pairs of examples.

    The prompt is the field `data.prompt`. Where that is empty it is what both answers begin with:
    of chats the messages, of texts all up to the last word that they have in common.

    Args:
        examples: Rows with the fields that `config` names.
        config: Names the fields `prompt`, `chosen` and `rejected`.
        bad: What becomes of bad rows; None follows `config`.

    Raises:
        DataError: a field is missing or is neither text nor a chat, or both answers are alike.
    """
    bad = bad or BadRows(config.bad_rows)
    found = list[Preference]()
    for indices, rows in examples.batches():
        for index, row in zip(indices, rows, strict=True):
            try:
                found.append(_pair(examples, index, row, config))
            except DataError as error:
                bad.take(error, examples.mark(index))
    if len(examples) and not found:
        raise bad.refuse_all(examples.origin)
    return found


def _pair(examples: Examples, index: int, row: Row, config: DataConfig) -> Preference:
    chosen = _answer(examples, index, row, config.chosen)
    rejected = _answer(examples, index, row, config.rejected)
    where = examples.where(index)
    if chosen == rejected:
        raise DataError(f"{where}: both answers are the same, so that none is the better one")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(f"{where}: one answer is text and the other one a chat: make both alike")
    if config.prompt:
        prompt = _answer(examples, index, row, config.prompt)
        if isinstance(prompt, str) != isinstance(chosen, str):
            raise DataError(f"{where}: the prompt is text and the answers chats, or the reverse")
        if isinstance(prompt, str):
            prompt += PROMPT_SEPARATOR
        return Preference(prompt=prompt, chosen=chosen, rejected=rejected)
    size = _shared(chosen, rejected)
    if not chosen[size:] or not rejected[size:]:
        raise DataError(f"{where}: one answer is the beginning of the other one")
    return Preference(prompt=chosen[:size], chosen=chosen[size:], rejected=rejected[size:])


def _answer(examples: Examples, index: int, row: Row, field: str) -> Answer:
    value = examples.value(index, field, row)
    if isinstance(value, list | tuple):
        return chat_messages(value, f"{examples.where(index)}: field {field!r}", examples.sparse)
    return examples.text(index, field, row)


def _shared(chosen: Answer, rejected: Answer) -> int:
    """Messages, or characters up to the end of a word, with which both answers begin."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    size = sum(1 for _ in same)
    if isinstance(chosen, str):
        while size and not chosen[size - 1].isspace():
            size -= 1
    return size
