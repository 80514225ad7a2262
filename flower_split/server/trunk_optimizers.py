"""The optimizers of the trunk's adapters: who steps what, and from which state it resumes."""

import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from flower_split.adapters import AdapterRound, SessionState, TrunkAdapters
from flower_split.adapters.trunk_adapters import MASTER
from flower_split.errors import StateError
from flower_split.lowrank import Instructions, Scaling, adapter_name, at_rank
from flower_split.optimization.moments import check_moments
from flower_split.segments import Cuts
from flower_split.server.session_states import SessionStates, SiloState
from flower_split.server.stepping import AdapterSlot, Stepper
from flower_split.transport.messages import SessionSpec, Ticket
from flower_split.transport.state_tags import state_tag

logger = logging.getLogger(__name__)


class TrunkOptimizers:
    """Makes the steppers of one trunk's sessions, and keeps their states where that is wanted.

    The master's stepper, which all sessions of a `shared` trunk have in common, lives on in any
    case. The silos' tags are kept in every mode, because also a silo whose trunk has no state of
    its own must not resume from a round that did not count.

    Args:
        adapters: The trunk's; None where it is frozen.
        shared: Whether all sessions step the master.
        keep: Whether a silo's next session resumes from the state of its last.
        states: Where they are kept; others of the same run may keep theirs there.
        cuts: Those of its sessions, where the run has others too. A silo that comes with other cuts
            than its last session's starts afresh.
    """

    def __init__(
        self,
        adapters: TrunkAdapters | None,
        *,
        shared: bool,
        keep: bool,
        states: SessionStates | None = None,
        cuts: Cuts | None = None,
    ) -> None:
        self._adapters = adapters
        self._shared = shared
        self._keep = keep
        self._states = SessionStates() if states is None else states
        self._cuts = None if cuts is None else (cuts.bottom_layers, cuts.top_layers)
        self._master: Stepper | None = None
        self._master_start: Mapping[str, Tensor] = {}

    def resumed(
        self, spec: SessionSpec, ticket: Ticket | None, instructions: Instructions
    ) -> SiloState | None:
        """The state from which both ends of a new session resume; None when both start afresh."""
        trains = spec.purpose == "train"
        wanted = instructions.personal or (trains and (self._keep or instructions.controlled))
        if ticket is None or not wanted:
            return None
        state = self._states.find(spec.silo, spec.session_states)
        if state is None and self._states.has(spec.silo):
            logger.warning(
                "silo %r no longer has its half of what its last session left: both sides start "
                "afresh",
                spec.silo,
            )
        if state is not None and self._adapters is not None and state.cuts != self._cuts:
            logger.warning(
                "silo %r has moved its cuts from %s to %s (bottom, top) since its last session: "
                "both sides start afresh",
                *(spec.silo, state.cuts, self._cuts),
            )
            return None
        return state

    def slot(
        self,
        name: str,
        spec: SessionSpec,
        state: SiloState | None,
        *,
        scaling: Scaling | None,
        begun: AdapterRound | None,
    ) -> AdapterSlot:
        """The session's adapter `name` with its stepper, which resumes from `state`.

        The optimizer starts afresh where `scaling` is not the one that `state` was left with; the
        silo does so too.
        """
        if self._adapters is None:
            raise TypeError("a frozen trunk has no adapter to step")
        if begun is None:
            if self._master is None:
                self._master = Stepper(self._adapters, MASTER, spec.optimizer)
                self._master.load_moments(self._master_start)
            return AdapterSlot(self._adapters, name, self._master, begun=None)
        stepper = Stepper(self._adapters, name, spec.optimizer)
        trains = self._keep and spec.purpose == "train"
        if state is not None and trains:
            stepper.load_moments(state.state.moments_at(scaling))
        return AdapterSlot(self._adapters, name, stepper, begun=begun)

    def proposal(
        self,
        ticket: Ticket,
        spec: SessionSpec,
        slot: AdapterSlot | None,
        *,
        scaling: Scaling | None,
        instructions: Instructions,
        steps: int,
    ) -> SiloState | None:
        """What the silo's next session may resume from, once this one counts.

        None where nothing is kept, or where the silo has no name by which to keep it.
        """
        keeps = instructions.has_personal or (self._keep and steps > 0)
        if spec.purpose != "train" or not keeps or not spec.silo:
            return None
        left = SessionState(scaling=scaling)
        if slot is not None:
            moments = slot.moments() if self._keep else {}
            left = SessionState(moments=moments, personal=slot.personal(), scaling=scaling)
        return SiloState(
            silo=spec.silo,
            server_round=ticket.server_round,
            tag=state_tag(ticket),
            state=left,
            cuts=self._cuts,
        )

    def put(self, state: SiloState) -> None:
        """The session that left `state` counts: the silo's next one resumes from it."""
        self._states.put(state)

    def forget(self, silo: str) -> None:
        """Forget the state of `silo`."""
        self._states.forget(silo)

    def states(self) -> list[SiloState]:
        """Every state that the next round can resume from; the master's, without a name, first."""
        master = self._master_start if self._master is None else self._master.moments()
        common = SiloState(silo="", server_round=0, tag="", state=SessionState(moments=master))
        return [*([common] if master else []), *self._states.all()]

    def load(self, states: Iterable[SiloState]) -> None:
        """Resume from `states` and no others; nothing is changed when one does not fit.

        Raises:
            StateError: a state is not one of this trunk's adapters.
        """
        states = list(states)
        for state in states:
            self.check(state)
        self.replace(states)

    def replace(self, states: Iterable[SiloState]) -> None:
        """As `load`, of states that were checked."""
        states = list(states)
        self._master = None
        self._master_start = {}
        for state in states:
            if not state.silo:
                self._master_start = dict(state.state.moments)
        self._states.replace(state for state in states if state.silo)

    def check(self, silo: SiloState) -> None:
        """Raise `StateError` unless the state is one of these adapters."""
        state = silo.state
        holds = self._adapters is not None and self._shared == (not silo.silo)
        if not holds:
            if state.moments or state.personal.tensors:
                raise StateError(
                    f"what was kept for {silo.silo or 'the shared trunk'!r} was kept in "
                    "another mode of trunk.adapters"
                )
            return
        if self._adapters is not None:
            at = self._adapters.scaling if state.scaling is None else state.scaling
            expected = {
                name: torch.empty(
                    tuple(p.shape) if at is None else at_rank(name, tuple(p.shape), at.r),
                    dtype=p.dtype,
                    device="meta",
                )
                for name, p in self._adapters.named_parameters(MASTER).items()
            }
            check_moments(expected, state.moments)
            for name, tensor in state.personal.tensors.items():
                held = expected.get(name if at is None else adapter_name(name))
                if held is None or held.shape != tensor.shape:
                    raise StateError(
                        f"{name}, kept for silo {silo.silo!r}, does not fit this trunk's adapters"
                    )
