"""A silo's delivery stream says in time what is wrong, and leaves nothing behind."""

import socket
import threading
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from affine_backend import AffineBackend
from hosting import nothing_left

from flower_split.errors import (
    CertificateError,
    ConfigError,
    HandshakeError,
    TrunkError,
    TrunkUnavailableError,
    WireError,
)
from flower_split.proto import trunk_pb2 as pb
from flower_split.proto.trunk_pb2_grpc import TrunkServicer, add_TrunkServicer_to_server
from flower_split.server.grpc.server import TrunkServer
from flower_split.tls import ClientTls, ServerTls
from flower_split.transport.grpc.delivery import GrpcDelivery
from flower_split.transport.messages import Ticket

DIGEST = "ab" * 32
MIB = 1 << 20


class Scripted(TrunkServicer):
    """Answers every request by the replies that a test wants, and waits where one is None."""

    def __init__(self, replies: list[pb.DeliverReply | None]) -> None:
        self._replies = replies
        self.go = threading.Event()

    def Deliver(  # noqa: N802
        self, request_iterator: Iterator[pb.DeliverRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.DeliverReply]:
        next(request_iterator)
        for reply in self._replies:
            if reply is None:
                self.go.wait(30)
                return
            yield reply


@pytest.fixture
def serve() -> Iterator[object]:
    servers = []

    def start(*replies: pb.DeliverReply | None) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        scripted = Scripted(list(replies))
        add_TrunkServicer_to_server(scripted, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append((server, scripted))
        return f"127.0.0.1:{port}"

    yield start
    for server, scripted in servers:
        scripted.go.set()
        server.stop(None).wait()


def read_all(address: str, **options: object) -> bytes:
    stream = GrpcDelivery(address, **options)  # type: ignore[arg-type]
    try:
        return b"".join(stream.read(DIGEST, 0))
    finally:
        stream.close()
        stream.close()


def reply(size: int, last: bool = False) -> pb.DeliverReply:
    return pb.DeliverReply(data=b"x" * size, last=last)


def test_a_part_comes_in_pieces(serve) -> None:
    assert len(read_all(serve(reply(MIB), reply(MIB), reply(7, True)))) == 2 * MIB + 7
    assert read_all(serve(reply(0, True))) == b""


@pytest.mark.parametrize(
    "bad", [reply(0), reply(5), reply(MIB - 1), reply(MIB + 1), reply(MIB + 1, True)]
)
def test_pieces_of_another_size_end_the_delivery(serve, bad: pb.DeliverReply) -> None:
    with pytest.raises(WireError, match="a piece of"):
        read_all(serve(reply(MIB), bad))


def test_an_end_before_the_last_piece_is_said(serve) -> None:
    with pytest.raises(TrunkUnavailableError, match="ended the model's delivery"):
        read_all(serve(reply(MIB)))


@pytest.mark.parametrize("options", [{"timeout": 0.4}, {"connect_timeout": 0.4, "timeout": 0.4}])
def test_a_server_that_stops_sending_is_given_up(serve, options: dict[str, float]) -> None:
    with pytest.raises(TrunkUnavailableError, match=r"sent nothing of the model within 0\.4 s"):
        read_all(serve(reply(MIB), None), **options)


@pytest.mark.medium
def test_a_server_that_never_answers_is_given_up(serve) -> None:
    with pytest.raises(TrunkError):
        read_all(serve(None), connect_timeout=0.4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with nothing_left(), pytest.raises(TrunkUnavailableError):
            read_all(address, connect_timeout=0.4)


def test_nobody_at_the_address_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with nothing_left(), pytest.raises(TrunkUnavailableError, match=f"127.0.0.1:{port}"):
        read_all(f"127.0.0.1:{port}")


def test_another_ca_is_said_as_such() -> None:
    stranger = ClientTls(ca=ServerTls.ephemeral().ca)
    with (
        TrunkServer(AffineBackend(), tls=ServerTls.ephemeral()) as server,
        pytest.raises(CertificateError),
    ):
        read_all(server.address, tls=stranger)


def test_plaintext_to_other_machines_is_refused() -> None:
    with nothing_left(), pytest.raises(ConfigError, match="needs TLS"):
        GrpcDelivery("192.0.2.1:1")
    with pytest.raises(ConfigError, match="timeouts must be positive"):
        GrpcDelivery("127.0.0.1:1", timeout=0.0)


def test_a_ticket_that_does_not_fit_the_wire_is_said() -> None:
    with pytest.raises(HandshakeError, match="does not fit the wire"):
        GrpcDelivery("127.0.0.1:1", Ticket(run_id=-1, node_id=1, server_round=1, token="t"))


def test_closing_from_another_thread_ends_the_reading(serve) -> None:
    stream = GrpcDelivery(serve(reply(MIB), None))
    pieces = stream.read(DIGEST, 0)
    next(pieces)
    threading.Timer(0.2, stream.close).start()
    with pytest.raises(TrunkUnavailableError):
        next(pieces)
