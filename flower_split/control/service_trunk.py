"""`ServiceTrunk`: the trunk of a run that a service elsewhere hosts, as its strategy sees it."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

from torch import Tensor

from flower_split.config.sections import SplitConfig
from flower_split.control.caller import QUICK, ControlCaller
from flower_split.control.content import Content
from flower_split.control.messages import (
    invite_message,
    read_collected,
    read_layout,
    read_states,
    read_summary,
    start_text,
    states_content,
)
from flower_split.control.run_settings import told_settings
from flower_split.errors import (
    FlowerSplitError,
    TrunkError,
    TrunkRestartedError,
    TrunkUnavailableError,
    WireError,
)
from flower_split.proto import control_pb2 as pb
from flower_split.server.hosting.layout import RunLayout
from flower_split.server.hosting.run_trunk import Invitee, SiloChannel
from flower_split.server.session_states import SiloState
from flower_split.server.ticket_record import SessionOutcome, Stage, TrunkStart
from flower_split.transport.invitation import DeliveryOffer
from flower_split.transport.messages import SessionSummary, Ticket

logger = logging.getLogger(__name__)

FIRST_PATIENCE = 10.0
"""Seconds for which a service is waited for that no run of the strategy has reached yet."""
FRESH = 0.25
"""Seconds for which it is believed what the sessions were like at the last look."""
BEAT = 10.0
"""Seconds between two signs that the strategy is alive."""
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class _Seen:
    stage: Stage = Stage.PREPARED
    silo: str = ""
    progress: SessionSummary | None = None


class ServiceSession:
    """`InvitedSession` of a trunk service.

    Args:
        trunk: The run's.
        name: By which it is asked for.
        ticket: Opens it.
        offer: Of the model.
        start: Number of what it starts from.
    """

    def __init__(
        self,
        trunk: "ServiceTrunk",
        name: bytes,
        ticket: Ticket,
        offer: DeliveryOffer | None,
        start: int,
    ) -> None:
        self.ticket = ticket
        self.offer = offer
        self.name = name
        self.start = start
        self._trunk = trunk

    @property
    def silo(self) -> str:
        """See `InvitedSession`, as all of these."""
        return self._trunk.seen(self.name).silo

    @property
    def stage(self) -> Stage:
        """As it was at the last look."""
        return self._trunk.seen(self.name).stage

    @property
    def progress(self) -> Callable[[], SessionSummary | None]:
        """The same."""
        return partial(_progress, self._trunk, self.name)

    def collect(self) -> SessionOutcome | None:
        """What the session leaves; None unless it was finished."""
        return self._trunk.collect(self.name)

    def accept(self) -> None:
        """The silo's next session resumes from what this one has left."""
        self._trunk.accept(self.name)

    def discard(self) -> None:
        """End the session; where the service cannot be asked to, it does so by itself."""
        self._trunk.discard(self)


def _progress(trunk: "ServiceTrunk", name: bytes) -> SessionSummary | None:
    return trunk.seen(name).progress


class ServiceTrunk:
    """`RunTrunk` at a service; a context manager.

    Args:
        config: The run's.
        caller: Calls the service; already entered.

    Raises:
        TrunkUnavailableError, CertificateError, TokenError: on entering: the service cannot be
            reached, or does not take the strategy's certificate.
        HandshakeError: on entering: it is of another version, or has another model or cuts.
        ModelError, AdapterError, ConfigError: on entering: as for a trunk of this process.
    """

    def __init__(self, config: SplitConfig, caller: ControlCaller) -> None:
        self._settings = told_settings(config)
        self._caller = caller
        self._run = b""
        self._lock = threading.Lock()
        self._seen: dict[bytes, _Seen] = {}
        self._waiting = 0
        self._looked = 0.0
        self._gone_since: float | None = None
        self._patience = config.trunk.service_timeout
        self._starts: dict[int, Mapping[str, Tensor]] = {}
        self._users: dict[int, set[bytes]] = {}
        self._numbers = 0
        self._undone: list[bytes] = []
        self._stopped = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="trunk-service-beat", daemon=True)

    def __enter__(self) -> Self:
        answer, _ = self._caller.call(
            pb.Call(hello=pb.Hello()), seconds=QUICK, patience=FIRST_PATIENCE
        )
        logger.info(
            "the trunk is at the service %s: %s", self._caller.address, answer.welcome.model
        )
        self.layout = self._open()
        self._beats.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        self._beats.join(1.0)  # where the service hangs, it does so for longer
        try:
            self._caller.call(self._call(close=pb.Close()), seconds=_CLOSE_SECONDS, patience=0.0)
        except FlowerSplitError as error:
            logger.info("the trunk service was not told of the run's end: %s", error)

    layout: RunLayout
    """See `RunTrunk`."""

    @property
    def channel(self) -> SiloChannel:
        """How silos reach the service."""
        return self._channel

    @property
    def waiting(self) -> int:
        """Passes that waited there at the last look."""
        self._look()
        return self._waiting

    def reopen(self) -> None:
        """Open the run anew, at a service that knows nothing of it any more.

        Raises:
            TrunkUnavailableError: it did not come back in time.
            HandshakeError: it has another model now, or is of another version.
        """
        layout = self._open()
        if layout.plan != self.layout.plan or layout.parameters != self.layout.parameters:
            raise TrunkUnavailableError("the trunk service came back with another model")

    def confirm(self) -> None:
        """See `RunTrunk.confirm`.

        Raises:
            TrunkUnavailableError: the service was stopped, and not started again in time.
        """
        end = time.monotonic() + self._patience
        while True:
            answer, _ = self._caller.call(self._call(look=pb.Look()), seconds=QUICK)
            if not answer.looked.stopping:
                return
            if time.monotonic() > end:
                raise TrunkUnavailableError(
                    f"the trunk service at {self._caller.address} is being stopped since "
                    f"{self._patience:g} s"
                )
            time.sleep(1.0)

    def begin(self, shared: Mapping[str, Tensor]) -> None:
        """See `RunTrunk.begin`."""
        own = shared if self.layout.mode == "shared" else {}
        self._caller.call(self._call(begin=pb.Begin()), Content(tensors=own))

    def invite(self, invitee: Invitee, start: TrunkStart) -> ServiceSession:
        """See `RunTrunk.invite`; tensors that several sessions start from are brought once."""
        self._discard_undone()
        name = secrets.token_bytes(16)
        number = next((n for n, held in self._starts.items() if held is start.tensors), None)
        known = number is not None
        if number is None:
            number, self._numbers = self._numbers, self._numbers + 1
        answer, _ = self._caller.call(
            self._call(invite=invite_message(name, invitee, number, known=known)),
            Content(text=start_text(start), tensors={} if known else start.tensors),
        )
        self._starts[number] = start.tensors  # held, so that no others get its place in memory
        self._users.setdefault(number, set()).add(name)
        invited = answer.invited

        def ticket(token: str) -> Ticket:
            return Ticket(
                run_id=invitee.run_id,
                node_id=invitee.node_id,
                server_round=invitee.server_round,
                token=token,
            )

        offer = None
        if invited.pack:
            tickets = tuple(map(ticket, invited.delivery_tokens))
            offer = DeliveryOffer(pack=invited.pack, tickets=tickets)
        return ServiceSession(self, name, ticket(invited.token), offer, number)

    def collect(self, name: bytes) -> SessionOutcome | None:
        """What the session of this name leaves; None unless it was finished."""
        answer, content = self._caller.call(self._call(collect=pb.Collect(session=name)))
        return read_collected(answer.collected, content.tensors)

    def accept(self, name: bytes) -> None:
        """The reply of the session's silo counts."""
        self._caller.call(self._call(accept=pb.Accept(session=name)))

    def discard(self, session: ServiceSession) -> None:
        """End the session, if the service is there."""
        users = self._users.get(session.start, set())
        users.discard(session.name)
        if not users:
            self._users.pop(session.start, None)
            self._starts.pop(session.start, None)
        self._seen.pop(session.name, None)
        self._undone.append(session.name)
        self._discard_undone()

    def _discard_undone(self) -> None:
        """End the sessions that nobody waits for; those that cannot be, at the next invitation."""
        while self._undone:
            discard = pb.Discard(session=self._undone[0])
            try:
                self._caller.call(self._call(discard=discard), seconds=QUICK, patience=0.0)
            except TrunkError as error:
                logger.info("the trunk service could not end a session: %s", error)
                return
            del self._undone[0]

    def note_connected(self, node_ids: Collection[int]) -> None:
        """See `RunTrunk.note_connected`."""
        self._caller.call(self._call(connected=pb.Connected(node_ids=node_ids)))

    def shared_state(self) -> dict[str, Tensor]:
        """See `RunTrunk.shared_state`."""
        _, content = self._caller.call(self._call(read_shared=pb.ReadShared()))
        return dict(content.tensors)

    def session_states(self) -> list[SiloState]:
        """See `RunTrunk.session_states`."""
        _, content = self._caller.call(self._call(read_states=pb.ReadStates()))
        return read_states(content)

    def load_session_states(self, states: Iterable[SiloState]) -> None:
        """See `RunTrunk.load_session_states`."""
        self._caller.call(self._call(load_states=pb.LoadStates()), states_content(states))

    def seen(self, name: bytes) -> _Seen:
        """The session of this name, as it was at a look that is not old.

        Raises:
            TrunkRestartedError: nothing of the run is left at the service.
            TrunkUnavailableError: the service is gone for too long.
        """
        self._look()
        return self._seen.get(name, _Seen())

    def _look(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._looked < FRESH:
                return
            self._looked = now
            try:
                answer, _ = self._caller.call(
                    self._call(look=pb.Look()), seconds=QUICK, patience=0.0
                )
            except TrunkRestartedError:
                raise
            except TrunkUnavailableError as error:
                self._note_gone(error)
                return
            if self._gone_since is not None:
                logger.info("the trunk service is there again, with the run")
            self._gone_since = None
            self._waiting = answer.looked.waiting
            self._seen = {one.session: _read_seen(one) for one in answer.looked.sessions}

    def _note_gone(self, error: TrunkUnavailableError) -> None:
        if self._gone_since is None:
            self._gone_since = time.monotonic()
            logger.warning("%s; it is waited for, for %g s", error, self._patience)
        elif time.monotonic() - self._gone_since > self._patience:
            raise error

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT):
            try:
                self._caller.call(self._call(look=pb.Look()), seconds=QUICK, patience=0.0)
            except FlowerSplitError as error:
                logger.debug("no sign of life reached the trunk service: %s", error)

    def _open(self) -> RunLayout:
        answer, content = self._caller.call(pb.Call(open=pb.Open()), Content(text=self._settings))
        opened = answer.opened
        self._run = opened.run
        self._channel = SiloChannel(address=opened.address, tls=opened.tls, ca=opened.ca)
        self._seen, self._starts, self._users, self._undone = {}, {}, {}, []
        self._gone_since = None
        return read_layout(content)

    def _call(self, **kind: object) -> pb.Call:
        return pb.Call(run=self._run, **kind)  # type: ignore[arg-type]


def _read_seen(message: pb.Seen) -> _Seen:
    try:
        stage = Stage(message.stage)
    except ValueError as error:
        raise WireError(f"a session at the stage {message.stage[:40]!r}") from error
    progress = read_summary(message.progress) if message.HasField("progress") else None
    return _Seen(stage=stage, silo=message.silo, progress=progress)
