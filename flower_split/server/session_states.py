"""The trunk's halves of what silos' sessions leave, from one round to the next.

That is the optimizer's state, and what a strategy keeps for one silo alone. A session's half is
only proposed, in the record of its ticket, until its silo's reply counts; then it takes the place
of the silo's former one. What a round that did not count has left is thus never resumed from.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from flower_split.adapters import Kept
from flower_split.lowrank import Scaling


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionState:
    """The trunk's half of what one silo's session left."""

    silo: str
    """The silo's name; empty for the state that all silos of a `shared` trunk have in common."""
    server_round: int
    tag: str
    """By which the silo names its own half; empty for the common state, which has no other half."""
    tensors: Mapping[str, Tensor]
    """The optimizer's, as in `flower_split.optimization.moments`; empty where the trunk's half is
    in the common state or where the trunk is frozen."""
    kept: Kept = field(default_factory=Kept)
    """Of the trunk's layers; empty unless the strategy keeps something for single silos."""
    scaling: Scaling | None = None
    """Of the silo's adapter in that session; None where it told none, or in the common state."""


class SessionStates:
    """At most one state for each silo that has trained, on the CPU.

    The optimizer's is twice the silo's trunk adapter, what is kept at most twice again; see
    `docs/session-state.md`. What sessions of the running round propose comes on top of it.
    """

    def __init__(self) -> None:
        self._states: dict[str, SessionState] = {}

    def find(self, silo: str, tags: Iterable[str]) -> SessionState | None:
        """The state of `silo`, if its tag is among `tags`."""
        state = self._states.get(silo)
        return state if state is not None and state.tag in tags else None

    def has(self, silo: str) -> bool:
        """Whether there is a state of `silo`."""
        return silo in self._states

    def put(self, state: SessionState) -> None:
        """The silo's state from now on, in place of its former one."""
        self._states[state.silo] = state

    def forget(self, silo: str) -> None:
        """Forget the state of `silo`."""
        self._states.pop(silo, None)

    def all(self) -> list[SessionState]:
        """Every silo's state."""
        return list(self._states.values())

    def replace(self, states: Iterable[SessionState]) -> None:
        """Hold `states` and nothing else."""
        self._states = {state.silo: state for state in states}
