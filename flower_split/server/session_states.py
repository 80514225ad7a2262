"""The trunk's halves of what silos' sessions leave, from one round to the next.

That is the optimizer's state, and what a strategy keeps for one silo alone. A session's half is
only a proposal until its silo's reply counts; then it takes the place of the silo's former one.
What a round that did not count has left is thus never resumed from.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from flower_split.adapters import PersonalTensors
from flower_split.lowrank import Scaling
from flower_split.transport.messages import Ticket
from flower_split.transport.state_tags import state_tag


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionState:
    """The trunk's half of what one silo's session left."""

    silo: str
    """The silo's name; empty for the state that all silos of a `shared` trunk have in common."""
    server_round: int
    tag: str
    """By which the silo names its own half; empty for the common state, which has no other half."""
    tensors: Mapping[str, Tensor]
    """See `flower_split.optimization.moments`; empty where the trunk's half is in the common state
    or where the trunk is frozen."""
    kept: PersonalTensors = field(default_factory=PersonalTensors)
    """Of the trunk's layers; empty unless the strategy keeps something for single silos."""
    scaling: Scaling | None = None
    """Of the silo's adapter in that session; None where it told none, or in the common state."""


class SessionStates:
    """At most one state for each silo that has trained, on the CPU.

    The optimizer's is twice the silo's trunk adapter, what is kept at most twice again; see
    `docs/session-state.md`. What sessions of the running round propose comes on top of it.
    """

    def __init__(self) -> None:
        self._kept: dict[str, SessionState] = {}
        self._proposed: dict[str, SessionState] = {}

    def find(self, silo: str, tags: Iterable[str]) -> SessionState | None:
        """The state of `silo`, if its tag is among `tags`."""
        state = self._kept.get(silo)
        return state if state is not None and state.tag in tags else None

    def has(self, silo: str) -> bool:
        """Whether there is a state of `silo`."""
        return silo in self._kept

    def propose(
        self,
        ticket: Ticket,
        silo: str,
        tensors: Mapping[str, Tensor],
        *,
        kept: PersonalTensors | None = None,
        scaling: Scaling | None = None,
    ) -> None:
        """What the ticket's finished session leaves; nothing without a name to keep it by."""
        if silo:
            self._proposed[ticket.token] = SessionState(
                silo=silo,
                server_round=ticket.server_round,
                tag=state_tag(ticket),
                tensors=tensors,
                kept=kept or PersonalTensors(),
                scaling=scaling,
            )

    def accept(self, ticket: Ticket) -> None:
        """The reply counts: what the ticket's session has left is the silo's state from now on."""
        state = self._proposed.pop(ticket.token, None)
        if state is not None:
            self._kept[state.silo] = state

    def reject(self, ticket: Ticket) -> None:
        """Forget what the ticket's session has left, unless it was accepted."""
        self._proposed.pop(ticket.token, None)

    def forget(self, silo: str) -> None:
        """Forget the state of `silo`."""
        self._kept.pop(silo, None)

    def all(self) -> list[SessionState]:
        """Every silo's state."""
        return list(self._kept.values())

    def replace(self, states: Iterable[SessionState]) -> None:
        """Keep `states` and nothing else."""
        self._kept = {state.silo: state for state in states}
        self._proposed.clear()
