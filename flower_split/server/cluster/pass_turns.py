"""The order of one session's passes at an actor, which Ray may begin in another, or never."""

import asyncio
from collections import defaultdict

from flower_split.errors import SequenceError


class PassTurns:
    """Whose turn it is: passes of each kind in the order of their numbers, and one at a time."""

    def __init__(self) -> None:
        self._next: dict[str, int] = defaultdict(int)
        self._skipped = set[tuple[str, int]]()
        self._changed = asyncio.Condition()
        self._is_busy = self._has_ended = False

    def turn(self, kind: str, number: int) -> "_Turn":
        """A context in which the pass of that kind and number alone is computed."""
        return _Turn(self, kind, number)

    async def end(self) -> None:
        """Nobody waits any more."""
        async with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    async def begin(self, kind: str, number: int) -> None:
        """Wait for the turn."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._has_ended or (not self._is_busy and self._next[kind] == number)
            )
            if self._has_ended:
                raise SequenceError("the session has ended")
            self._is_busy = True

    async def skip(self, kind: str, number: int) -> None:
        """A pass that Ray does not have begin, because what it is given was not made."""
        async with self._changed:
            if self._next[kind] <= number:
                self._skipped.add((kind, number))
            self._go_on(kind)
            self._changed.notify_all()

    async def pass_on(self, kind: str) -> None:
        """The turn is over."""
        async with self._changed:
            self._next[kind] += 1
            self._is_busy = False
            self._go_on(kind)
            self._changed.notify_all()

    def _go_on(self, kind: str) -> None:
        while (kind, self._next[kind]) in self._skipped:
            self._skipped.discard((kind, self._next[kind]))
            self._next[kind] += 1


class _Turn:
    def __init__(self, turns: PassTurns, kind: str, number: int) -> None:
        self._turns, self._kind, self._number = turns, kind, number

    async def __aenter__(self) -> None:
        await self._turns.begin(self._kind, self._number)

    async def __aexit__(self, *exc_info: object) -> None:
        await self._turns.pass_on(self._kind)
