"""The trunk's halves of what silos' sessions leave, from one round to the next.

That is moments, and the personal tensors of the trunk's layers. A session's half is
only proposed, in the record of its ticket, until its silo's reply counts; then it takes the place
of the silo's former one. What a round that did not count has left is thus never resumed from.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from flower_split.adapters import SessionState


@dataclass(frozen=True, kw_only=True, eq=False)
class SiloState:
    """The trunk's half of what one silo's session left."""

    silo: str
    """The silo's name; empty for the state that all silos of a `shared` trunk have in common."""
    server_round: int
    tag: str
    """By which the silo names its own half; empty for the common state, which has no other half."""
    state: SessionState = field(default_factory=SessionState)
    """Of the trunk's layers. No moments where they are in the common state or the trunk is frozen,
    and no personal tensors unless the strategy leaves some to single silos."""
    cuts: tuple[int, int] | None = None
    """Bottom and top layers of the silo then; None where all silos of the run have the same."""


class SessionStates:
    """At most one state for each silo that has trained, on the CPU.

    Moments are twice the silo's trunk adapter, personal tensors at most twice again; see
    `docs/session-state.md`. What sessions of the running round propose comes on top of it.
    """

    def __init__(self) -> None:
        self._states: dict[str, SiloState] = {}

    def find(self, silo: str, tags: Iterable[str]) -> SiloState | None:
        """The state of `silo`, if its tag is among `tags`."""
        state = self._states.get(silo)
        return state if state is not None and state.tag in tags else None

    def has(self, silo: str) -> bool:
        """Whether there is a state of `silo`."""
        return silo in self._states

    def put(self, state: SiloState) -> None:
        """The silo's state from now on, in place of its former one."""
        self._states[state.silo] = state

    def forget(self, silo: str) -> None:
        """Forget the state of `silo`."""
        self._states.pop(silo, None)

    def all(self) -> list[SiloState]:
        """Every silo's state."""
        return list(self._states.values())

    def replace(self, states: Iterable[SiloState]) -> None:
        """Hold `states` and nothing else."""
        self._states = {state.silo: state for state in states}
