"""Batches of random token ids, each with a trait by which a cut could show."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flower_split.config.tasks import CAUSAL_LM, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION
from flower_split.segments.shrinking import LABELS

_ROWS, _TOKENS = 3, 14


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs of one forward pass."""

    title: str
    inputs: dict[str, Tensor]
    cached: bool = True
    """Whether it is also given a cache, as a stock model makes one by default."""
    staged: bool = False
    """Whether it also passes stage by stage."""


def batches(
    vocabulary: int, typed: bool = False, *, task: str = CAUSAL_LM, pad_id: int = 0
) -> Iterator[Batch]:
    """Batches of 3 rows and 14 tokens: whole, padded on either side, packed.

    Args:
        vocabulary: Token ids are below it.
        typed: Whether one is given types of tokens too.
        task: What the model is for, by which the labels are chosen.
        pad_id: The model's padding, by which it may find a row's last token.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (_ROWS, _TOKENS), generator=generator)
    lengths = torch.tensor([_TOKENS, _TOKENS - 3, _TOKENS - 6])
    columns = torch.arange(_TOKENS)
    right = columns < lengths[:, None]
    left = right.flip(1)
    classes = torch.randint(0, LABELS, ids.shape, generator=generator)
    labels = classes if task == TOKEN_CLASSIFICATION else ids
    plain = {"input_ids": ids, "labels": labels}
    if sequences := task == SEQUENCE_CLASSIFICATION:
        plain["labels"] = classes[:, 0]
    yield Batch(title="a batch without mask", inputs=plain, cached=False)
    for side, mask in (("right", right), ("left", left)):
        padded = {**plain, "attention_mask": mask.long()}
        if task != CAUSAL_LM:
            padded["input_ids"] = ids.masked_fill(~mask, pad_id)
        if not sequences:
            padded["labels"] = labels.masked_fill(~mask, -100)
        is_left = mask is left
        staged = is_left or sequences
        yield Batch(title=f"{side} padding", inputs=padded, cached=is_left, staged=staged)
    shifted = (left.long().cumsum(1) + 1).masked_fill(~left, 1)
    positions = {**padded, "position_ids": shifted}
    yield Batch(title="explicit positions", inputs=positions, cached=False)
    packed = (columns % (_TOKENS - 6))[None].expand(_ROWS, -1)
    yield Batch(title="packed documents", inputs={**plain, "position_ids": packed}, staged=True)
    if typed:
        types = {**plain, "token_type_ids": (columns >= lengths[:, None]).long()}
        yield Batch(title="two types of tokens", inputs=types, cached=False)
