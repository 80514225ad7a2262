"""Batches of random token ids, each with a trait by which a cut could show."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

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


def batches(vocabulary: int, typed: bool = False) -> Iterator[Batch]:
    """Batches of 3 rows and 14 tokens: whole, padded on either side, packed.

    Args:
        vocabulary: Token ids are below it.
        typed: Whether one is given types of tokens too.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (_ROWS, _TOKENS), generator=generator)
    lengths = torch.tensor([_TOKENS, _TOKENS - 3, _TOKENS - 6])
    columns = torch.arange(_TOKENS)
    right = columns < lengths[:, None]
    left = right.flip(1)
    plain = {"input_ids": ids, "labels": ids}
    yield Batch(title="a batch without mask", inputs=plain, cached=False)
    for side, mask in (("right", right), ("left", left)):
        padded = {**plain, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}
        is_left = mask is left
        yield Batch(title=f"{side} padding", inputs=padded, cached=is_left, staged=is_left)
    shifted = (left.long().cumsum(1) + 1).masked_fill(~left, 1)
    positions = {**padded, "position_ids": shifted}
    yield Batch(title="explicit positions", inputs=positions, cached=False)
    packed = (columns % (_TOKENS - 6))[None].expand(_ROWS, -1)
    yield Batch(title="packed documents", inputs={**plain, "position_ids": packed}, staged=True)
    if typed:
        types = {**plain, "token_type_ids": (columns >= lengths[:, None]).long()}
        yield Batch(title="two types of tokens", inputs=types, cached=False)
