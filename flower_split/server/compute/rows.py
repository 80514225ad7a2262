"""Rows: requests of several sessions laid into one batch, and its results cut apart again.

Shorter requests are padded on the right. The trunk's layers are causal, so that no token attends
to what comes after it, and every row is computed for itself: padding changes no result, but for
positions that the silo's own mask hides, which nothing depends on. What could change something is
not mixed; `mixing_key` says which.

Axes: B rows, T tokens a row, H hidden size.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from flower_split.transport.messages import OWN_ADAPTER, ForwardRequest


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What the trunk is given for one batch."""

    hidden: Tensor
    """(B, T, H)."""
    attention_mask: Tensor | None = None
    """(B, T) of bool."""
    position_ids: Tensor | None = None
    """(B, T) or (1, T) of int64."""


def mixing_key(request: ForwardRequest) -> Hashable | None:
    """Requests with equal keys can share a batch; None for one that must be alone.

    Alone is who extends a key-value cache, begins with a prefix, or computes with another adapter
    than its own. Without a mask another attention kernel runs than with one, and by their positions
    the stock code then finds several texts in a row, which padding would disturb: so masked and
    unmasked requests stay apart, and unmasked ones with positions share a batch only at the same
    length.
    """
    if request.cache is not None or request.prefix is not None:
        return None
    if request.adapter != OWN_ADAPTER:
        return None
    masked, placed = request.attention_mask is not None, request.position_ids is not None
    length = request.hidden.shape[1] if placed and not masked else 0
    return (masked, placed, length, request.keep_graph, request.autocast)


def join(requests: Sequence[ForwardRequest]) -> Rows:
    """One batch of the rows of all requests, whose `mixing_key` is the same.

    A single request is taken as it is.
    """
    first = requests[0]
    if len(requests) == 1:
        return Rows(
            hidden=first.hidden,
            attention_mask=first.attention_mask,
            position_ids=first.position_ids,
        )
    masks = [request.attention_mask for request in requests]
    positions = [
        None
        if request.position_ids is None
        else request.position_ids.expand(len(request.hidden), -1)
        for request in requests
    ]
    return Rows(
        hidden=join_tensors([request.hidden for request in requests]),
        attention_mask=_join_given(masks),
        position_ids=_join_given(positions),
    )


def join_tensors(tensors: Sequence[Tensor], width: int = 0) -> Tensor:
    """(B_i, T_i, H) one under the other as (sum of B_i, T, H), padded with zeros.

    T is the longest T_i, or at least `width`.
    """
    width = max(width, *(tensor.shape[1] for tensor in tensors))
    return torch.cat([pad(tensor, (0, 0, 0, width - tensor.shape[1])) for tensor in tensors])


def cut(batch: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Each request's own rows and tokens of `batch`, by its (B_i, T_i); copies where they share."""
    if len(shapes) == 1:
        return [batch]
    parts = batch.split([rows for rows, _ in shapes])
    return [part[:, :tokens].clone() for part, (_, tokens) in zip(parts, shapes, strict=True)]


def _join_given(tensors: Sequence[Tensor | None]) -> Tensor | None:
    given = [tensor for tensor in tensors if tensor is not None]
    if not given:
        return None
    width = max(tensor.shape[1] for tensor in given)
    return torch.cat([pad(tensor, (0, width - tensor.shape[1])) for tensor in given])
