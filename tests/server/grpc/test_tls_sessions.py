"""What a token opens, over real TLS: one session of its holder, in its time, and nothing else."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
from affine_backend import AffineBackend, backward, forward, spec
from cutting_relay import CuttingRelay
from hosting import eventually, hosting, nothing_left

from flower_split.errors import (
    CertificateError,
    ForeignRunError,
    TokenError,
    TrunkBusyError,
    TrunkError,
)
from flower_split.server.grpc import listeners
from flower_split.server.grpc.server import TrunkServer
from flower_split.server.grpc.service import ServiceLimits
from flower_split.server.tickets import TicketBook
from flower_split.tls import ClientTls, ServerTls
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.messages import Ticket

SECONDS = 40.0


@dataclass(frozen=True)
class Trunk:
    """A trunk over TLS that admits by tickets."""

    server: TrunkServer
    book: TicketBook
    backend: AffineBackend
    trust: ClientTls

    def connect(self, ticket: Ticket | None, **options: object) -> GrpcTransport:
        purpose = options.pop("purpose", "train")
        return GrpcTransport(
            self.server.address,
            spec(purpose=purpose),
            ticket,
            tls=self.trust,
            connect_timeout=SECONDS,
            **options,  # type: ignore[arg-type]
        )

    def refuses(self, ticket: Ticket | None, **options: object) -> TrunkError:
        with nothing_left(), pytest.raises(TrunkError) as caught:
            self.connect(ticket, **options)
        return caught.value


@pytest.fixture
def trunk() -> Iterator[Trunk]:
    tls, book, backend = ServerTls.ephemeral(), TicketBook(), AffineBackend()
    limits = ServiceLimits(max_sessions=1)
    with hosting(backend, tls=tls, admit=book, limits=limits) as server:
        yield Trunk(server, book, backend, ClientTls(ca=tls.ca))


@pytest.fixture
def ticket(trunk: Trunk) -> Ticket:
    return trunk.book.issue(1, 2, 3, "train", seconds=600.0)


def test_a_token_opens_its_session(trunk: Trunk, ticket: Ticket) -> None:
    with trunk.connect(ticket) as transport:
        transport.forward(forward(0)).result(SECONDS)
        transport.finish()


def test_a_silo_reconnects_over_tls_to_whom_it_believes(trunk: Trunk, ticket: Ticket) -> None:
    """And to nobody else, not even for an attempt more."""
    with (
        CuttingRelay(trunk.server.address, is_tls=True) as relay,
        GrpcTransport(relay.address, spec(), ticket, tls=trunk.trust) as transport,
    ):
        transport.forward(forward(0)).result(SECONDS)
        relay.cut_all()
        assert transport.backward(backward(0)).result(SECONDS) is not None
        assert transport.reconnects == 1
        stranger = AffineBackend()
        with hosting(stranger, tls=ServerTls.ephemeral()) as other:
            relay.lead_to(other.address)
            relay.cut_all()
            began = time.monotonic()
            with pytest.raises(CertificateError, match="a CA that this silo does not trust"):
                transport.forward(forward(1)).result(SECONDS)
            assert time.monotonic() - began < 10  # of 14 s
        assert stranger.events == []


def test_a_token_whose_session_broke_off(trunk: Trunk, ticket: Ticket) -> None:
    trunk.connect(ticket).close()
    assert eventually(lambda: trunk.server.num_sessions == 0)
    assert type(trunk.refuses(ticket)) is TokenError


def test_a_second_stream_on_one_token_does_not_disturb_the_first(
    trunk: Trunk, ticket: Ticket
) -> None:
    with trunk.connect(ticket) as transport:
        assert type(trunk.refuses(ticket)) is TokenError
        transport.forward(forward(0)).result(SECONDS)
        transport.finish()


@pytest.mark.parametrize("changes", [{"run_id": 9}, {"node_id": 9}, {"server_round": 9}])
def test_a_token_in_another_holder_s_name(
    trunk: Trunk, ticket: Ticket, changes: dict[str, int]
) -> None:
    assert type(trunk.refuses(replace(ticket, **changes))) is ForeignRunError
    trunk.connect(ticket).close()


def test_another_trunk_s_token(trunk: Trunk) -> None:
    foreign = TicketBook().issue(1, 2, 3, "train")
    assert type(trunk.refuses(foreign)) is TokenError


def test_a_token_for_another_purpose(trunk: Trunk, ticket: Ticket) -> None:
    assert type(trunk.refuses(ticket, purpose="evaluate")) is ForeignRunError


def test_a_token_after_its_round(trunk: Trunk, ticket: Ticket) -> None:
    trunk.book.end_round(3)
    assert type(trunk.refuses(ticket)) is TokenError


def test_a_token_after_its_time(trunk: Trunk) -> None:
    ticket = trunk.book.issue(1, 2, 3, "train", seconds=0.05)
    time.sleep(0.1)
    assert type(trunk.refuses(ticket)) is TokenError


def test_no_token(trunk: Trunk) -> None:
    assert type(trunk.refuses(None)) is TokenError


def test_no_refusal_tells_what_exists(trunk: Trunk, ticket: Ticket) -> None:
    """One wording for each of the two codes, whatever the reason."""
    used = trunk.book.issue(1, 2, 4, "train")
    with trunk.connect(used) as transport:
        transport.finish()
    ended = trunk.book.issue(1, 2, 1, "train")
    trunk.book.end_round(1)
    invalid = {str(trunk.refuses(t)) for t in (None, used, ended, replace(ticket, token="x" * 43))}
    foreign = {
        str(trunk.refuses(replace(ticket, **{name: 9})))
        for name in ("run_id", "node_id", "server_round")
    } | {str(trunk.refuses(ticket, purpose="evaluate"))}
    assert len(invalid) == 1 and len(foreign) == 1


def test_a_full_trunk_tells_strangers_nothing_and_burns_no_token(
    trunk: Trunk, ticket: Ticket
) -> None:
    waiting = trunk.book.issue(1, 5, 3, "train")
    with trunk.connect(ticket) as transport:
        assert type(trunk.refuses(None)) is TokenError
        assert type(trunk.refuses(replace(waiting, token="y" * 43))) is TokenError
        assert type(trunk.refuses(waiting)) is TrunkBusyError
        transport.finish()
    assert eventually(lambda: trunk.server.num_sessions == 0)
    trunk.connect(waiting).close()


@pytest.mark.medium
def test_a_silo_waits_until_a_full_trunk_has_room(trunk: Trunk, ticket: Ticket) -> None:
    first = trunk.connect(ticket)
    leaving = threading.Timer(1.0, first.close)
    leaving.start()
    with trunk.connect(trunk.book.issue(1, 5, 3, "train"), patience=SECONDS) as second:
        second.forward(forward(0)).result(SECONDS)
    leaving.join()


def test_nothing_shows_a_token(
    trunk: Trunk, ticket: Ticket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with trunk.connect(ticket) as transport:
        assert ticket.token not in repr(transport) + repr(ticket)
        error = trunk.refuses(ticket)
    assert ticket.token not in caplog.text + str(error) + repr(error) + str(trunk.book.__dict__)


def ended(peer: socket.socket) -> bool:
    """Whether the trunk has closed a connection; reads what it said before."""
    try:
        while peer.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@pytest.mark.medium
def test_strangers_that_say_nothing_or_nonsense_are_shut_out_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = [
        (name, 1500 if name.endswith("_ms") else value) for name, value in listeners._STRANGERS
    ]
    assert len([name for name, _ in short if name.endswith("_ms")]) == 2
    monkeypatch.setattr(listeners, "_STRANGERS", short)
    tls = ServerTls.ephemeral()
    with (
        hosting(AffineBackend(), tls=tls, admit=(book := TicketBook())) as server,
        ExitStack() as stack,
    ):
        peers = []
        for number in range(150):
            peer = socket.create_connection(("127.0.0.1", server.port), SECONDS)
            stack.callback(peer.close)
            if number % 2:
                peer.sendall(os.urandom(500))
            peer.setblocking(False)
            peers.append(peer)
        good = ClientTls(ca=tls.ca)
        ticket = book.issue(1, 2, 3, "train")
        with GrpcTransport(
            server.address, spec(), ticket, tls=good, connect_timeout=SECONDS
        ) as transport:
            transport.forward(forward(0)).result(SECONDS)
            assert eventually(lambda: all(ended(peer) for peer in peers), SECONDS)
            transport.forward(forward(1)).result(SECONDS)
            transport.finish()
