"""The scheduler: which requests the trunk computes next, and together with which others.

It knows no tensors and no clock: whoever asks tells the time. In this order:

1. A request that has been passed over `_MAX_OVERTAKEN` times comes first, so that none starves.
2. Backward passes come before forward passes: they free activations and end silos' waiting.
3. Otherwise who came first is served first. A session has one request here at a time, so that one
   with much to do comes after everybody who waits already.

With it go other requests that can share its batch, up to a number of tokens and as long as padding
wastes little. Where others are likely to come soon, it waits for them for a short while.
"""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["forward", "backward"]

_MAX_OVERTAKEN = 2
# Padded tokens over real ones.
_MAX_PADDING = 1.25
# Seconds after which nobody waits for a session that has asked for nothing.
_ACTIVE_SECONDS = 5.0
# Seconds that a request waits for room before it is computed without keeping its activations.
_ROOM_SECONDS = 2.0


@dataclass(kw_only=True, eq=False)
class Turn:
    """A request that waits."""

    session: int
    kind: Kind
    rows: int
    tokens: int
    """Of each row."""
    arrived: float
    """Seconds, on the clock of whoever asks."""
    mix: Hashable | None = None
    """Turns of one kind with equal values can be computed together; None is always alone."""
    keeps: bool = False
    """Whether activations are kept after it."""
    holds: bool = False
    """Whether its session keeps activations already. It is not made to wait for room: who holds
    some and waits for more could wait for somebody who does the same."""
    memory: int = 0
    """Bytes that it needs, computed alone."""
    overtaken: int = 0
    """Batches that were computed before it although it waited."""

    @property
    def cost(self) -> int:
        """Rows x tokens."""
        return self.rows * self.tokens


class Scheduler:
    """Requests that wait for the trunk.

    Args:
        max_tokens: Of one batch, padding included. A request that has more is computed alone.
        gather: Seconds that a request waits for others to share its batch.
        max_memory: Bytes that one batch may need.
    """

    def __init__(self, *, max_tokens: int, gather: float, max_memory: float = math.inf) -> None:
        self._max_memory = max_memory
        self._max_tokens = max_tokens
        self._gather = gather
        self._waiting: list[Turn] = []
        self._served: dict[tuple[int, Kind], tuple[Hashable | None, float]] = {}
        self._members: dict[Hashable, frozenset[int]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, turn: Turn) -> None:
        """Let `turn` wait."""
        self._waiting.append(turn)

    def leave(self, session: int) -> list[Turn]:
        """Forget a session; its turns, which are not computed any more."""
        gone = [turn for turn in self._waiting if turn.session == session]
        self._waiting = [turn for turn in self._waiting if turn.session != session]
        for kind in ("forward", "backward"):
            self._served.pop((session, kind), None)
        return gone

    def expect(self, mix: Hashable, sessions: Iterable[int]) -> None:
        """Exactly these sessions will bring a backward pass of this `mix`; none forgets it."""
        members = frozenset(sessions)
        if members:
            self._members[mix] = members
        else:
            self._members.pop(mix, None)

    def next(self, now: float, room: float) -> list[Turn] | float | None:
        """The turns to compute now; or the seconds until it is worth to ask again; or None.

        Args:
            now: The time.
            room: Tokens whose activations can yet be kept.
        """
        soonest: float | None = None
        for head in sorted(self._waiting, key=_rank):
            delay = self._room_delay(head, now, room)
            if delay <= 0:
                batch, full = self._batch(head, room)
                delay = 0.0 if full else self._gather_delay(batch, now)
                if delay <= 0:
                    self._dispatch(batch, now)
                    return batch
            soonest = delay if soonest is None else min(soonest, delay)
        return soonest

    def _room_delay(self, head: Turn, now: float, room: float) -> float:
        if not head.keeps or head.holds or head.cost <= room:
            return 0.0
        return head.arrived + _ROOM_SECONDS - now

    def _batch(self, head: Turn, room: float) -> tuple[list[Turn], bool]:
        """Who goes with `head`, and whether somebody was left out because the batch is full."""
        batch, full = [head], False
        if head.mix is None:
            return batch, True
        members = head.mix in self._members
        width, rows, real, memory = head.tokens, head.rows, head.cost, head.memory
        for turn in sorted(self._waiting, key=_rank):
            if turn is head or turn.kind != head.kind or turn.mix != head.mix:
                continue
            wider, more = max(width, turn.tokens), rows + turn.rows
            padded = wider * more
            if not members:  # whose batch was computed once already
                limit = min(self._max_tokens, room) if head.keeps else self._max_tokens
                # With the square of the length, as attention's does.
                needed = (memory + turn.memory) * (padded / (real + turn.cost)) ** 2
                if padded > limit or needed > self._max_memory:
                    full = True
                    continue
                if padded > _MAX_PADDING * (real + turn.cost):
                    continue
            batch.append(turn)
            width, rows, real = wider, more, real + turn.cost
            memory += turn.memory
        return batch, full

    def _gather_delay(self, batch: list[Turn], now: float) -> float:
        head = batch[0]
        if head.overtaken or width_times_rows(batch) >= self._max_tokens:
            return 0.0
        busy = {turn.session for turn in self._waiting}
        members = self._members.get(head.mix)
        if members is None:
            members = frozenset(
                session
                for (session, kind), (mix, when) in self._served.items()
                if kind == head.kind and mix == head.mix and now - when < _ACTIVE_SECONDS
            )
        return head.arrived + self._gather - now if members - busy else 0.0

    def _dispatch(self, batch: list[Turn], now: float) -> None:
        chosen = set(batch)
        self._waiting = [turn for turn in self._waiting if turn not in chosen]
        for turn in self._waiting:
            turn.overtaken += 1
        for turn in batch:
            self._served[turn.session, turn.kind] = (turn.mix, now)


def width_times_rows(batch: Iterable[Turn]) -> int:
    """Tokens of a batch with its padding."""
    turns = list(batch)
    return max(turn.tokens for turn in turns) * sum(turn.rows for turn in turns)


def _rank(turn: Turn) -> tuple[bool, bool, float]:
    starving = turn.overtaken >= _MAX_OVERTAKEN
    return not starving, not starving and turn.kind == "forward", turn.arrived
