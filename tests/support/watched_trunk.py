"""A trunk under watch: real layers behind gRPC, silos with manners, and the invariants of faults.

Every silo's session is a function of its node alone, so that what a fault did is found by comparing
with the session of the same node that nothing disturbed.
"""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hosting import eventually, hosting
from several_silos import make_trunk
from tiny_models import tiny_model
from torch import Tensor

from flower_split.errors import TrunkError
from flower_split.server.compute.queue import BatchSettings
from flower_split.server.engine import TrunkEngine
from flower_split.server.grpc.server import TrunkServer
from flower_split.server.grpc.service import ServiceLimits
from flower_split.server.ticket_record import TicketRecord, TrunkStart
from flower_split.server.tickets import TicketBook
from flower_split.tls import ClientTls, ServerTls
from flower_split.transport.grpc.channel import Keepalive
from flower_split.transport.grpc.status import CODES
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.messages import (
    BackwardRequest,
    ForwardRequest,
    SessionLimits,
    StepRequest,
    Ticket,
)

SECONDS = 30.0
FREED_SECONDS = 15.0
"""Within which a session's place and its graphs are free again."""
HEALTHY_SECONDS = 1.0
BRISK = Keepalive(interval=0.5, timeout=0.5)
STEPS, MICROBATCHES = 2, 2
VICTIM, NEIGHBOUR = 7, 8
"""Nodes."""
CANARY = 1234.5625
"""An element of every tensor that a silo sends; exact in float32."""
CODES_OF_GRPC = {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK}
"""Besides our own: a silo's own leaving, and the end of a stream."""


@dataclass(frozen=True)
class Invited:
    """A silo's ticket, and what becomes of its session."""

    ticket: Ticket
    record: TicketRecord


@dataclass(frozen=True)
class Trained:
    """What a silo got of a whole session: h2 and g1 of every microbatch, norms of every step."""

    answers: list[Tensor]

    def equals(self, other: "Trained") -> bool:
        return len(self.answers) == len(other.answers) and all(
            map(torch.equal, self.answers, other.answers)
        )


def drawn(node: int, number: int, width: int) -> Tensor:
    """A tensor of a silo's own, of 2 rows and 5 tokens."""
    generator = torch.Generator().manual_seed(1000 * node + number)
    tensor = torch.randn(2, 5, width, generator=generator)
    tensor[0, 0, 0] = CANARY
    return tensor


@dataclass
class WatchedTrunk:
    """A served trunk whose sessions are counted, remembered and compared."""

    server: TrunkServer
    engine: TrunkEngine
    book: TicketBook
    tls: ClientTls | None = None
    start: dict[str, Tensor] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    invited: list[Invited] = field(default_factory=list)
    """Everyone, in the order of their tickets."""
    _made: list["weakref.ref[Tensor]"] = field(default_factory=list)
    _alone: dict[int, tuple[Trained, dict[str, Tensor]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = self.engine.shared_state()
        self.engine.trunk.register_forward_hook(
            lambda *made: self._made.append(weakref.ref(made[-1]))
        )

    def invite(self, node: int, *, run: int = 1, server_round: int = 1, **more: Any) -> Invited:
        ticket = self.book.issue(run, node, server_round, "train", **more)
        self.tokens.append(ticket.token)
        start = TrunkStart(tensors=self.start if self.engine.mode == "federated" else {})
        self.invited.append(Invited(ticket, self.engine.prepare(ticket, start)))
        return self.invited[-1]

    def connect(self, invited: Invited, address: str = "", **options: Any) -> GrpcTransport:
        node = invited.ticket.node_id
        spec = replace(self.engine.describe(), seed=node, silo=f"silo-{node}")
        return GrpcTransport(
            address or self.server.address,
            spec,
            invited.ticket,
            **{"tls": self.tls, "keepalive": BRISK, "connect_timeout": SECONDS, **options},
        )

    def make_step(
        self, transport: GrpcTransport, node: int, step: int, first: int | None = None
    ) -> list[Tensor]:
        """The answers to one optimizer step's requests, whose microbatches count from `first`."""
        width, answers = self.engine.trunk.hidden_size, []
        first = MICROBATCHES * step if first is None else first
        for number in range(MICROBATCHES):
            seed, named = MICROBATCHES * step + number, {"step": step, "microbatch": first + number}
            hidden, grad = drawn(node, seed, width), drawn(node, 500 + seed, width)
            asked = ForwardRequest(**named, hidden=hidden, keep_graph=True)
            answers.append(transport.forward(asked).result(SECONDS))
            back = BackwardRequest(**named, grad=grad)
            answers.append(transport.backward(back).result(SECONDS))
        reply = transport.step(StepRequest(step=step, learning_rate=1e-2)).result(SECONDS)
        return [*answers, torch.tensor(reply.norms)]

    def train(self, invited: Invited, address: str = "", **options: Any) -> Trained:
        """A whole session, from its opening to its end."""
        answers = []
        with self.connect(invited, address, **options) as transport:
            for step in range(STEPS):
                answers += self.make_step(transport, invited.ticket.node_id, step)
            transport.finish()
        return Trained(answers)

    def alone(self, node: int) -> tuple[Trained, dict[str, Tensor]]:
        """A node's session that nothing disturbs, and the adapter that it leaves."""
        if node not in self._alone:
            invited = self.invite(node, run=99)
            trained = self.train(invited, patience=SECONDS)  # where another's place is not free yet
            outcome = invited.record.collect()
            assert outcome is not None and outcome.summary.steps == STEPS
            self._alone[node] = trained, dict(outcome.tensors)
        return self._alone[node]

    def is_alone(self, invited: Invited, trained: Trained | None) -> None:
        """I1 and I2: the session left what an undisturbed one leaves, or nothing at all."""
        answers, adapter = self.alone(invited.ticket.node_id)
        outcome = invited.record.collect()
        if trained is not None:
            assert trained.equals(answers), "the answers are not those of an undisturbed session"
            assert outcome is not None, "a session that was finished left nothing"
        if outcome is not None:
            assert outcome.summary.steps == STEPS, "a step was counted twice, or not at all"
            assert outcome.tensors.keys() == adapter.keys()
            assert all(torch.equal(outcome.tensors[name], t) for name, t in adapter.items())

    def is_untouched(self) -> bool:
        """I2: the adapter that sessions begin with is as it was before any; not of a shared one."""
        state = self.engine.shared_state()
        return self.engine.mode == "shared" or all(
            torch.equal(state[name], tensor) for name, tensor in self.start.items()
        )

    def healthy(self) -> bool:
        """I5, with more than one try for a machine that has other things to do."""
        request = health_pb2.HealthCheckRequest(service="flower_split.v1.Trunk")
        for _ in range(5):
            with self._health_channel() as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                before = time.monotonic()
                status = stub.Check(request, timeout=20).status
                assert status == health_pb2.HealthCheckResponse.SERVING
                if time.monotonic() - before < HEALTHY_SECONDS:
                    return True
        return False

    def _health_channel(self) -> grpc.Channel:
        address = self.server.health_address
        if self.tls is None:
            return grpc.insecure_channel(address)
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(self.tls.ca))

    def is_free(self) -> bool:
        """I4: no session is open, and nothing of their graphs is left."""
        return not self.server.num_sessions and not self.kept

    @property
    def kept(self) -> int:
        """Outputs of the trunk's layers that are still in memory, with graph or without."""
        for _ in range(2):
            self._made[:] = [made for made in self._made if made() is not None]
            if not self._made:
                break
            gc.collect()
        return len(self._made)


@dataclass(frozen=True)
class Mutual:
    """A trunk that demands certificates, and those of two silos."""

    trunk: WatchedTrunk
    owner: ClientTls
    thief: ClientTls


@dataclass
class Fault:
    """What a test does to the trunk, and what came of it."""

    trunk: WatchedTrunk
    errors: list[TrunkError] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Further texts that may hold no secret."""

    def attempt(self, invited: Invited, *arguments: Any, **options: Any) -> Trained | None:
        """A whole session; None where it ends in an error of ours."""
        try:
            trained = self.trunk.train(invited, *arguments, **options)
        except TrunkError as error:
            self.errors.append(error)
            trained = None
        self.trunk.is_alone(invited, trained)
        return trained

    def refused(self, work: Callable[[], object], kind: type[TrunkError]) -> TrunkError:
        """The error of ours, of this kind, that `work` ends in."""
        with pytest.raises(TrunkError) as caught:
            work()
        assert type(caught.value) is kind, repr(caught.value)
        self.errors.append(caught.value)
        return caught.value


class Neighbour:
    """A silo whose session begins before a fault, works while it lasts, and ends after it.

    Between its first step and the others it has the same microbatch computed over and over.
    """

    def __init__(self, trunk: WatchedTrunk) -> None:
        self._trunk = trunk
        self._invited = trunk.invite(NEIGHBOUR)
        self._transport = trunk.connect(self._invited, keepalive=Keepalive())
        self._got = trunk.make_step(self._transport, NEIGHBOUR, 0)
        self._next = MICROBATCHES
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(1, "neighbour")
        self._working = self._pool.submit(self._work)

    def _work(self) -> None:
        hidden = drawn(NEIGHBOUR, 0, self._trunk.engine.trunk.hidden_size)
        first: Tensor | None = None
        while not self._over.wait(0.05):
            asked = ForwardRequest(step=1, microbatch=self._next, hidden=hidden)
            h2 = self._transport.forward(asked).result(SECONDS)
            first = h2 if first is None else first
            assert torch.equal(h2, first), "a neighbour's output is another than before the fault"
            self._next += 1

    def finish(self) -> None:
        """Make the other steps, and compare all with a session that nothing disturbed."""
        self._over.set()
        self._working.result(SECONDS)
        for step in range(1, STEPS):
            self._got += self._trunk.make_step(self._transport, NEIGHBOUR, step, self._next)
            self._next += MICROBATCHES
        self._transport.finish()
        self._trunk.is_alone(self._invited, Trained(self._got))

    def leave(self) -> None:
        self._over.set()
        self._pool.shutdown()
        self._transport.close()
        self._got.clear()


@contextmanager
def withstood(
    trunk: WatchedTrunk, caplog: pytest.LogCaptureFixture, *, secrets: Sequence[str] = ()
) -> Iterator[Fault]:
    """A fault in the body, while a neighbour trains; afterwards every invariant holds."""
    caplog.set_level("DEBUG", logger="flower_split")
    trunk.alone(NEIGHBOUR)
    earlier = len(trunk.invited)
    fault, neighbour = Fault(trunk), Neighbour(trunk)
    try:
        yield fault
        assert trunk.healthy()  # I5
        neighbour.finish()  # I3
    finally:
        neighbour.leave()
    assert eventually(trunk.is_free, FREED_SECONDS), trunk.server.num_sessions  # I4
    for invited in trunk.invited[earlier:]:
        trunk.is_alone(invited, None)  # I1, I2: whoever else finished has left whole steps
    assert trunk.is_untouched()  # I2
    for error in fault.errors:  # I7
        cause = error.__cause__
        assert type(error) in CODES
        if isinstance(cause, grpc.Call):
            assert cause.code() in {*CODES.values(), *CODES_OF_GRPC}, cause
    told = "\n".join([caplog.text, *fault.texts, *map(repr, fault.errors)])  # I6
    shown = [repr(CANARY), "tensor(", "PRIVATE KEY", *trunk.tokens, *secrets]
    assert [one for one in shown if one in told] == []


@contextmanager
def watched_trunk(
    *,
    tls: ServerTls | None = None,
    trust: ClientTls | None = None,
    clock: Callable[[], float] = time.monotonic,
    limits: ServiceLimits | None = None,
    session: SessionLimits | None = None,
    keepalive: Keepalive = BRISK,
    batching: BatchSettings | None = None,
    **options: Any,
) -> Iterator[WatchedTrunk]:
    """A trunk of the middle layers of a tiny model, served."""
    session = session or SessionLimits(max_message_tokens=16_384)
    engine = make_trunk(tiny_model(), batching, limits=session, **options)
    book = TicketBook(clock)
    limits = limits or ServiceLimits(session=session, hidden_size=engine.trunk.hidden_size)
    with hosting(engine, admit=book, tls=tls, limits=limits, keepalive=keepalive) as server:
        yield WatchedTrunk(server, engine, book, trust)
