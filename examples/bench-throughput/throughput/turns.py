"""Turns: what is compared is measured in turns, and the turns of a quiet machine are kept."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

QUIET = 0.05
"""Share of the cores that others may use in a turn that counts as quiet."""


class Turn(Protocol):
    """One measurement of everything that is compared."""

    @property
    def others(self) -> float:
        """The greatest share of the cores that others used."""
        ...


T = TypeVar("T", bound=Turn)


def quiet_turns(take: Callable[[], T], wanted: int, *, patience: float) -> Sequence[T]:
    """`wanted` quiet turns, or the quietest of those that were taken in time.

    Args:
        take: Takes one; called once more, at first, to warm up.
        wanted: Turns.
        patience: Seconds after which no turn is taken beyond those that are wanted.
    """
    take()
    give_up = time.monotonic() + patience
    turns: list[T] = []
    while len(turns) < wanted or (
        sum(turn.others <= QUIET for turn in turns) < wanted and time.monotonic() < give_up
    ):
        turns.append(take())
    return sorted(turns, key=lambda turn: turn.others)[:wanted]
