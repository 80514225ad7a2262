"""Rendered examples: what the model reads of a silo's data, and which part of it has a loss.

For whoever holds the data, on the silo's own machine. Nothing of it may get into a message, a
result or the server's log.
"""

import itertools
import sys
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from flower_split.client.session import SplitSession
from flower_split.data import SiloData, eval_batches
from flower_split.optimization.loss import IGNORED

MOST_CHARS = 240
"""Characters that are shown of a part; what is longer loses its middle."""


@dataclass(frozen=True, kw_only=True)
class RenderedExample:
    """One example as the model gets it."""

    tokens: int
    targets: int
    """Tokens with a loss."""
    parts: tuple[tuple[bool, str], ...]
    """In order: whether the part has a loss, and its text with special tokens."""

    def __str__(self) -> str:
        lines = [f"{self.tokens} tokens, {self.targets} with a loss"]
        for has_loss, text in self.parts:
            lines.append(f"  {'loss   ' if has_loss else 'no loss'} | {_shortened(text)!r}")
        return "\n".join(lines)


def render_examples(
    silo: SiloData, tokenizer: PreTrainedTokenizerBase, count: int = 3
) -> list[RenderedExample]:
    """The first examples that the silo trains on.

    Args:
        silo: Tokenised.
        tokenizer: By which it was.
        count: How many, at most.
    """
    found = []
    for batch in itertools.islice(eval_batches(silo.train, 1), count):
        kept = batch["attention_mask"][0].bool()
        ids = batch["input_ids"][0][kept].tolist()
        labels = batch.get("labels")
        if labels is None or labels.dim() == 1:  # a label of the whole text
            losses = [False] * len(ids)
        else:
            losses = [label != IGNORED for label in labels[0][kept].tolist()]
        found.append(
            RenderedExample(
                tokens=len(ids), targets=sum(losses), parts=_parts(ids, losses, tokenizer)
            )
        )
    return found


def show_examples(session: SplitSession) -> None:
    """Print examples of the silo's data before its first round, as many as its node config says.

    On the process's own standard error: no logger passes them on.
    """
    if session.server_round > 1 or not (count := session.node.show_examples):
        return
    for example in render_examples(session.data.silo, session.data.tokenizer, count):
        print(f"silo {session.silo}: {example}", file=sys.stderr, flush=True)


def _parts(
    ids: list[int], losses: list[bool], tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[bool, str], ...]:
    parts, start = list[tuple[bool, str]](), 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or losses[end] != losses[start]:
            text = tokenizer.decode(ids[start:end], skip_special_tokens=False)
            parts.append((losses[start], str(text)))
            start = end
    return tuple(parts)


def _shortened(text: str) -> str:
    if len(text) <= MOST_CHARS:
        return text
    half = MOST_CHARS // 2
    return f"{text[:half]} … {text[-half:]}"
