"""`KeptActivations`: the memory of activations that trunks on one device keep, over all of them.

Whose turn finds no room is computed without keeping anything, and once more for its backward pass.
"""

import threading
from typing import Protocol
from weakref import WeakSet


class Keeper(Protocol):
    """What counts the activations of one trunk, or of one run's trunks."""

    kept: int
    """Tokens whose activations are kept now."""
    token_bytes: int
    """Of one token's, about."""

    def wake(self) -> None:
        """There is more room than before; never waits for long."""
        ...


class KeptActivations:
    """A bound in bytes, of which half is for the trunks in equal parts, half for who comes first.

    Args:
        max_bytes: The bound.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._keepers: WeakSet[Keeper] = WeakSet()

    @property
    def held(self) -> int:
        """Bytes that are kept now, about."""
        return sum(map(_bytes, self._all()))

    def join(self, keeper: Keeper) -> None:
        """It keeps of it, for as long as there is one."""
        with self._lock:
            self._keepers.add(keeper)

    def room(self, asking: Keeper) -> int:
        """Tokens of which a trunk may yet keep the activations."""
        keepers = self._all()
        part = self.max_bytes / (2 * len(keepers))
        free = self.max_bytes - sum(map(_bytes, keepers))
        others = sum(max(0.0, part - _bytes(one)) for one in keepers if one is not asking)
        own = max(0.0, part - _bytes(asking))
        room = max(min(own, free), free - others, 0.0)
        return int(room / max(1, asking.token_bytes))

    def freed(self, by: Keeper) -> None:
        """Something was let go of, which others may wait for."""
        for keeper in self._all():
            if keeper is not by:
                keeper.wake()

    def _all(self) -> list[Keeper]:
        with self._lock:
            return [*self._keepers]


def _bytes(keeper: Keeper) -> int:
    return keeper.kept * keeper.token_bytes
