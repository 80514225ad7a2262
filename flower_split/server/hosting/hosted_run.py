"""`HostedRun`: a run's trunk in this process, with its engine and its tickets."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from flower_split.config.sections import SplitConfig
from flower_split.segments import Trunk, held_by_trunk, layers_path
from flower_split.server.compute.queue import Computed
from flower_split.server.compute.turns import DeviceTurns
from flower_split.server.cut_engines import CutEngines
from flower_split.server.engine import TrunkEngine
from flower_split.server.engine_common import EngineCommon
from flower_split.server.grpc.delivery import PackSource
from flower_split.server.hosting.layout import RunLayout
from flower_split.server.hosting.resolving import ResolvedRun, engine_settings, session_limits
from flower_split.server.hosting.run_trunk import Invitee, SiloChannel
from flower_split.server.session_states import SiloState
from flower_split.server.stages.chain import Chain
from flower_split.server.stages.local_chain import local_chain
from flower_split.server.ticket_record import SessionOutcome, Stage, TicketRecord, TrunkStart
from flower_split.server.tickets import TicketBook
from flower_split.transport.invitation import MAX_STREAMS, DeliveryOffer
from flower_split.transport.messages import SessionSummary, Ticket

Engine = TrunkEngine | CutEngines | Chain[Any]
"""Hosts a run's sessions."""


class HostedSession:
    """`InvitedSession` of a run in this process.

    Args:
        ticket: Opens it.
        offer: Of the model.
        record: State of the ticket.
        engine: Made `record`.
        tickets: Issued the tickets.
    """

    def __init__(
        self,
        ticket: Ticket,
        offer: DeliveryOffer | None,
        record: TicketRecord,
        engine: Engine,
        tickets: TicketBook,
    ) -> None:
        self.ticket = ticket
        self.offer = offer
        self._record = record
        self._engine = engine
        self._tickets = tickets

    @property
    def silo(self) -> str:
        """See `InvitedSession`, as all of these."""
        return self._record.silo

    @property
    def stage(self) -> Stage:
        """No thread of the trunk waits for who looks."""
        return self._record.stage

    @property
    def progress(self) -> Callable[[], SessionSummary | None]:
        """The same."""
        return self._record.progress

    def collect(self) -> SessionOutcome | None:
        """What the session leaves, once; None unless it was finished."""
        return self._record.collect()

    def accept(self) -> None:
        """The silo's next session resumes from what this one has left."""
        self._engine.accept(self.ticket)

    def discard(self) -> None:
        """End the session and the delivery, and revoke the tickets."""
        for ticket in (self.ticket, *(self.offer.tickets if self.offer else ())):
            self._tickets.revoke(ticket)
        self._engine.discard(self.ticket)


class HostedRun:
    """`RunTrunk` in this process; whoever makes it serves its `engine` to silos.

    Args:
        config: The run's.
        resolved: Its trunk.
        pack: What is delivered to silos; None where they have their own.
        turns: Of each of the trunk's stages a context in which alone its device computes, see
            `TrunkQueue`; none where the devices are the run's alone.
        engine: What computes, where that is no part of this process.

    Raises:
        AdapterError, ConfigError: as `TrunkEngine`.
    """

    def __init__(
        self,
        config: SplitConfig,
        resolved: ResolvedRun,
        *,
        pack: PackSource | None = None,
        turns: Sequence[DeviceTurns] = (),
        engine: Chain[Any] | None = None,
    ) -> None:
        self.layout: RunLayout = resolved.layout
        self.limits = session_limits(config)
        """Of every session, as the run asks for them."""
        self.reconnect_timeout = config.trunk.reconnect_timeout
        self.engine: Engine = engine or _engine(
            config, resolved, pack="" if pack is None else pack.digest, turns=turns
        )
        self.tickets = TicketBook()
        self._pack = pack
        self._channel: SiloChannel | None = None

    @property
    def channel(self) -> SiloChannel:
        """How silos reach it, as `serve_at` was told."""
        if self._channel is None:
            raise TypeError("the run is not served yet")
        return self._channel

    def serve_at(self, channel: SiloChannel) -> None:
        """Silos reach it so from now on."""
        self._channel = channel

    @property
    def waiting(self) -> int:
        """Passes that wait now."""
        return self.engine.waiting

    @property
    def computed(self) -> Computed:
        """What was computed so far."""
        return self.engine.computed

    def confirm(self) -> None:
        """A trunk in this process ends with it only; stages elsewhere are waited for."""
        if isinstance(self.engine, Chain):
            self.engine.confirm()

    def begin(self, shared: Mapping[str, Tensor]) -> None:
        """See `RunTrunk.begin`."""
        self.engine.load_session_states(())
        if self.layout.mode == "shared":
            self.engine.load_shared_state(shared)

    def invite(self, invitee: Invitee, start: TrunkStart) -> HostedSession:
        """See `RunTrunk.invite`."""
        silo = invitee.run_id, invitee.node_id, invitee.server_round
        ticket = self.tickets.issue(*silo, invitee.purpose, seconds=invitee.seconds)
        offer = self._offer(*silo, seconds=invitee.seconds)
        record = self.engine.prepare(ticket, start)
        return HostedSession(ticket, offer, record, self.engine, self.tickets)

    def note_connected(self, node_ids: Collection[int]) -> None:
        """See `RunTrunk.note_connected`."""
        self.engine.names.note_connected(node_ids)

    def shared_state(self) -> dict[str, Tensor]:
        """See `RunTrunk.shared_state`."""
        return self.engine.shared_state()

    def session_states(self) -> list[SiloState]:
        """See `RunTrunk.session_states`."""
        return self.engine.session_states()

    def load_session_states(self, states: Iterable[SiloState]) -> None:
        """See `RunTrunk.load_session_states`."""
        self.engine.load_session_states(states)

    def _offer(
        self, run_id: int, node_id: int, server_round: int, *, seconds: float
    ) -> DeliveryOffer | None:
        """The model, and tickets to fetch it; None where silos have their own."""
        if self._pack is None:
            return None
        silo = run_id, node_id, server_round
        tickets = (
            self.tickets.issue(*silo, "deliver", seconds=seconds, number=number)
            for number in range(MAX_STREAMS)
        )
        return DeliveryOffer(pack=self._pack.digest, tickets=tuple(tickets))


def _engine(
    config: SplitConfig, resolved: ResolvedRun, *, pack: str, turns: Sequence[DeviceTurns]
) -> Engine:
    """What hosts the run's sessions: of one cut, or of several where silos have a choice; on one
    trunk, or a chain of its stages."""
    settings = engine_settings(config, resolved, pack=pack)
    if len(resolved.trunks) > 1:
        return local_chain(resolved.trunks, settings, turns=turns)
    (whole,), turn = resolved.trunks, turns[0] if turns else None
    path, initial = layers_path(whole.model), settings.initial or {}

    def make(
        trunk: Trunk, common: EngineCommon | None = None, turn: DeviceTurns | None = turn
    ) -> TrunkEngine:
        held = {n: tensor for n, tensor in initial.items() if held_by_trunk(n, path, trunk.cuts)}
        own = replace(settings, initial=held)
        return TrunkEngine(trunk, **vars(own), turns=turn, common=common)

    if resolved.most is None:
        return make(whole)
    taken = turn or DeviceTurns()
    return CutEngines(
        whole,
        resolved.most,
        lambda trunk, common: make(trunk, common, taken),
        turns=taken,
        max_activation_tokens=config.trunk.max_activation_tokens,
    )
