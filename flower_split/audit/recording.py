"""The recording: what the trunk's operator sees, taken where it arrives at the trunk."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from flower_split.compression.codec import Codec
from flower_split.compression.table import CODEC_TABLE, round_trip
from flower_split.tensor_digest import tensor_digest
from flower_split.transport.base import BackendSession, TrunkBackend
from flower_split.transport.messages import (
    BackwardRequest,
    ForwardReply,
    ForwardRequest,
    Reply,
    Request,
    SessionSpec,
    Ticket,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """Microbatches as they arrived after codec and transforms, their rows below one another.

    N rows of T tokens and H elements, float32 on the CPU; rows that were shorter end with zeros,
    where `mask` is false.
    """

    h1: Tensor
    """(N, T, H)."""
    mask: Tensor
    """(N, T) of bool: where a token is real."""
    h2: Tensor | None = None
    """(N, T, H): what the trunk answered, as the silo decodes it; None without a backward pass."""
    g2: Tensor | None = None
    """(N, T, H); None without a backward pass."""
    groups: tuple[tuple[int, int], ...] = ()
    """First row and the row after the last one of each optimizer step's microbatches."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in it, when it is first asked for."""
        return self.digest_now()

    def digest_now(self) -> str:
        """The same of what is in it now: another one where an attack wrote into it."""
        named = {"h1": self.h1, "mask": self.mask, "h2": self.h2, "g2": self.g2}
        return tensor_digest((name, one) for name, one in named.items() if one is not None)

    def with_h1(self, h1: Tensor) -> "Recording":
        """Another recording, in which the bottom's output is `h1`."""
        return replace(self, h1=h1)


class Recorder:
    """A `TrunkBackend` before another one, which notes what passes.

    Args:
        inner: Computes; None answers h1 itself, for who looks at h1 alone.
    """

    def __init__(self, inner: TrunkBackend | None = None) -> None:
        self._inner = inner
        self._seen = list[_Seen]()

    def open(self, spec: SessionSpec, ticket: Ticket | None) -> "Future[BackendSession]":
        """A session that is recorded."""
        inner = None if self._inner is None else self._inner.open(spec, ticket).result()
        future: Future[BackendSession] = Future()
        future.set_result(_Session(inner, self._seen, CODEC_TABLE[spec.wire.h2]))
        return future

    def take(self, tokens: int, groups: Sequence[tuple[int, int]] = ()) -> Recording:
        """All that was noted since the last call, in rows of `tokens`."""
        seen, self._seen[:] = list(self._seen), []
        h2 = [one.h2 for one in seen if one.h2 is not None]
        g2 = [one.g2 for one in seen if one.g2 is not None]
        complete = len(h2) == len(seen) == len(g2)
        return Recording(
            h1=torch.cat([_padded(one.h1, tokens) for one in seen]),
            mask=torch.cat([_padded(one.mask, tokens) for one in seen]),
            h2=torch.cat([_padded(one, tokens) for one in h2]) if complete else None,
            g2=torch.cat([_padded(one, tokens) for one in g2]) if complete else None,
            groups=tuple(groups),
        )


@dataclass(kw_only=True, eq=False)
class _Seen:
    h1: Tensor
    mask: Tensor
    h2: Tensor | None = None
    g2: Tensor | None = None


class _Session:
    """One session; requests that carry no tensor of the text pass unnoted."""

    resumed = ""
    depth = 1

    def __init__(self, inner: BackendSession | None, seen: list[_Seen], h2: Codec) -> None:
        self._inner = inner
        self._h2 = h2
        self._seen = seen
        self._under_way: dict[int, _Seen] = {}

    def submit(self, request: Request) -> Future[Reply]:
        """Note `request` and its answer."""
        if isinstance(request, ForwardRequest):
            rows, tokens, _ = request.hidden.shape
            mask = request.attention_mask
            one = _Seen(
                h1=_kept(request.hidden),
                mask=torch.ones(rows, tokens, dtype=torch.bool)
                if mask is None
                else mask.detach().cpu().bool(),
            )
            self._seen.append(one)
            self._under_way[request.microbatch] = one
            future = self._answer(request, request.hidden)
            reply = future.result()
            hidden = reply.hidden if isinstance(reply, ForwardReply) else reply
            if self._inner is not None and isinstance(hidden, Tensor):
                # As the silo decodes it: its loss, and so its gradient, is of that.
                one.h2 = _kept(round_trip(hidden.detach().cpu(), self._h2, "h2"))
            return future
        if isinstance(request, BackwardRequest):
            self._under_way.pop(request.microbatch).g2 = _kept(request.grad)
        return self._answer(request, None)

    def close(self) -> Future[None]:
        """Leave."""
        if self._inner is not None:
            return self._inner.close()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _answer(self, request: Request, alone: Reply) -> Future[Reply]:
        if self._inner is not None:
            return self._inner.submit(request)
        future: Future[Reply] = Future()
        future.set_result(alone)
        return future


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _padded(tensor: Tensor, tokens: int) -> Tensor:
    rows, own, *rest = tensor.shape
    if own == tokens:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(rows, tokens - own, *rest)], dim=1)


def digests(recordings: Mapping[str, Recording]) -> dict[str, str]:
    """The digest of every recording by its name."""
    return {name: one.digest for name, one in recordings.items()}
