"""Whatever a silo sends, it gets the right code, and the next silo gets its session."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import grpc
import pytest
import torch
from affine_backend import AffineBackend, backward, forward, spec
from hosting import eventually, hosting
from raw_silo import RawSilo

from flower_split.errors import TokenError, TrunkBusyError
from flower_split.proto import trunk_pb2 as pb
from flower_split.server.grpc.server import TrunkServer
from flower_split.server.grpc.service import ServiceLimits
from flower_split.server.tickets import TicketBook
from flower_split.transport.grpc.handshake import hello_frame
from flower_split.transport.grpc.requests import encode_request
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.messages import Finish, Request, SessionLimits, StepRequest, Ticket
from flower_split.transport.rules import HopRules

LIMITS = ServiceLimits(
    session=SessionLimits(max_message_tokens=4096), hidden_size=8, max_sessions=4
)
HELLO = hello_frame(spec(), None)


def frames(request: Request) -> list[pb.ClientFrame]:
    return list(encode_request(request, HopRules(spec())).frames())


def changed(request: Request, change: Callable[[pb.ClientFrame], object]) -> list[pb.ClientFrame]:
    all_frames = frames(request)
    change(all_frames[0])
    return all_frames


@pytest.fixture(scope="module")
def backend() -> AffineBackend:
    return AffineBackend()


@pytest.fixture(scope="module")
def server(backend: AffineBackend) -> Iterator[TrunkServer]:
    with hosting(backend, limits=LIMITS) as server:
        yield server


def works(server: TrunkServer, ticket: Ticket | None = None) -> bool:
    """Whether a silo with manners gets its session served."""
    with GrpcTransport(server.address, spec(), ticket) as transport:
        h2 = transport.forward(forward(0)).result(20)
        transport.backward(backward(0)).result(20)
        return torch.equal(h2, forward(0).hidden * 3 + 1) and transport.finish().forwards == 1


def chunk(name: str, value: object) -> Callable[[pb.ClientFrame], None]:
    return lambda frame: setattr(frame.chunks[0], name, value)


def hello(**changes: object) -> pb.ClientFrame:
    frame = pb.ClientFrame.FromString(HELLO.SerializeToString())
    for name, value in changes.items():
        setattr(frame.hello, name, value)
    return frame


def cut(frame: pb.ClientFrame) -> None:
    frame.chunks[0].data = frame.chunks[0].data[:100]


FORWARD = forward(0)
LARGE = forward(0, 512, 8, 8, attention_mask=torch.ones(512, 8, dtype=torch.bool))
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "WireError")
REFUSED = (grpc.StatusCode.FAILED_PRECONDITION, "HandshakeError")
DISORDER = (grpc.StatusCode.FAILED_PRECONDITION, "SequenceError")
FINISH = pb.ClientFrame(finish=pb.Finish())

ATTACKS: dict[str, tuple[list[pb.ClientFrame], tuple[grpc.StatusCode, str], str]] = {
    "first frame no hello": (frames(FORWARD), DISORDER, "frame forward, expected hello"),
    "first frame empty": ([pb.ClientFrame()], INVALID, "unknown kind"),
    "first frame chunks": ([pb.ClientFrame(chunks=[pb.Chunk()])], INVALID, "unknown kind"),
    "hello of a later version": ([hello(protocol_version=3)], REFUSED, "protocol_version"),
    "hello with unknown dtype": ([hello(dtype=99)], REFUSED, "dtype"),
    "hello with unknown codec": ([hello(g2=99)], REFUSED, "g2"),
    "hello with unknown purpose": ([hello(purpose=99)], REFUSED, "purpose"),
    "second hello": ([HELLO, HELLO], DISORDER, "second hello"),
    "empty frame": ([HELLO, pb.ClientFrame()], INVALID, "unknown kind"),
    "chunk too soon": (
        [HELLO, *changed(FORWARD, chunk("offset", 8))],
        *(DISORDER, "expected tensor 0, offset 0"),
    ),
    "chunk of another tensor": (
        [HELLO, *changed(FORWARD, chunk("tensor", 1))],
        *(DISORDER, "expected tensor 0, offset 0"),
    ),
    "chunk missing": (
        [HELLO, *changed(FORWARD, cut), FINISH],
        *(DISORDER, "frame finish, expected the chunks"),
    ),
    "chunk without a request": (
        [HELLO, pb.ClientFrame(chunks=[pb.Chunk(data=b"x")])],
        *(DISORDER, "expected a request"),
    ),
    "chunk too many": (
        [HELLO, *frames(FORWARD), pb.ClientFrame(chunks=[pb.Chunk(tensor=1, data=b"x")])],
        *(DISORDER, "expected a request"),
    ),
    "learning rate": (
        [HELLO, pb.ClientFrame(step=pb.Step(learning_rate=float("nan")))],
        *(INVALID, "learning_rate"),
    ),
    "gradient norm": (
        [HELLO, pb.ClientFrame(step=pb.Step(norms_after=[float("inf")]))],
        *(INVALID, "gradient norm"),
    ),
    "wrong step": ([HELLO, *frames(forward(0, step=5))], DISORDER, "expected step 0, got step 5"),
    "backward before forward": ([HELLO, *frames(backward(3))], DISORDER, "microbatch 3"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_and_the_trunk_goes_on(
    server: TrunkServer, backend: AffineBackend, name: str
) -> None:
    attack, (code, kind), message = ATTACKS[name]
    with RawSilo(server.address) as silo:
        assert silo.send(*attack).ending()[:2] == (code, kind)
        assert message in silo.call.details()
    assert backend.count("open") == backend.count("close")  # closed before the silo knew
    assert works(server)


NONSENSE = b"\xff\xff\xff\xff nonsense"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ([NONSENSE], grpc.StatusCode.INVALID_ARGUMENT),
        ([HELLO.SerializeToString(), NONSENSE], grpc.StatusCode.INVALID_ARGUMENT),
        ([bytes(3 << 20)], grpc.StatusCode.RESOURCE_EXHAUSTED),
        ([HELLO.SerializeToString(), bytes(3 << 20)], grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_bytes_that_are_no_frame(
    server: TrunkServer, sent: list[bytes], code: grpc.StatusCode
) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream("/flower_split.v1.Trunk/Session")(iter(sent), timeout=20)
        with pytest.raises(grpc.RpcError):
            list(call)
        assert call.code() is code
    assert works(server)


def test_a_stream_that_ends_at_once_is_no_error(server: TrunkServer) -> None:
    with RawSilo(server.address) as silo:
        assert silo.half_close().ending()[0] is grpc.StatusCode.OK
    assert works(server)


def test_a_stream_that_ends_without_finish_commits_nothing(
    server: TrunkServer, backend: AffineBackend
) -> None:
    finished = backend.count("finish")
    with RawSilo(server.address) as silo:
        assert silo.send(HELLO, *frames(FORWARD)).half_close().ending()[0] is grpc.StatusCode.OK
    assert backend.count("finish") == finished
    assert backend.count("open") == backend.count("close")


def test_what_comes_before_the_end_of_the_stream_is_still_served(server: TrunkServer) -> None:
    with RawSilo(server.address) as silo:
        silo.send(HELLO, *frames(LARGE), *frames(Finish())).half_close()
        kinds = [silo.read().WhichOneof("frame") for _ in range(3)]
        assert kinds == ["welcome", "forward", "summary"]
        assert silo.ending()[0] is grpc.StatusCode.OK


def test_a_token_opens_one_session_and_no_other(backend: AffineBackend) -> None:
    book = TicketBook()
    good, again = book.issue(1, 2, 3, "train"), book.issue(1, 2, 4, "train")

    def ending(ticket: Ticket | None) -> tuple[grpc.StatusCode, str]:
        with RawSilo(server.address) as silo:
            return silo.send(hello_frame(spec(), ticket)).ending()[:2]

    unauthenticated = (grpc.StatusCode.UNAUTHENTICATED, "TokenError")
    foreign = (grpc.StatusCode.PERMISSION_DENIED, "ForeignRunError")
    with hosting(backend, admit=book) as server:
        assert ending(None) == unauthenticated
        assert ending(replace(good, token="guess")) == unauthenticated
        assert ending(replace(good, run_id=9)) == foreign
        assert ending(replace(good, node_id=9)) == foreign
        assert ending(replace(good, server_round=9)) == foreign
        with GrpcTransport(server.address, spec(), good) as transport:
            assert ending(good) == unauthenticated  # a second stream on the same token
            transport.forward(forward(0)).result(20)
            transport.finish()
        assert ending(good) == unauthenticated  # replayed
        assert works(server, again)
        assert backend.tickets[-2:] == [good, again]


@pytest.mark.medium
def test_revoking_a_ticket_ends_its_session_within_a_second(backend: AffineBackend) -> None:
    book = TicketBook()
    idle, busy = book.issue(1, 2, 3, "train"), book.issue(1, 3, 3, "train")
    with (
        hosting(backend, admit=book) as server,
        GrpcTransport(server.address, spec(), idle),
        GrpcTransport(server.address, spec(), busy) as transport,
    ):
        transport.forward(forward(0)).result(20)
        book.end_round(3)
        with pytest.raises(TokenError, match="expired"):
            transport.step(StepRequest(step=0, learning_rate=0.1)).result(20)
        assert eventually(lambda: server.num_sessions == 0, 5)


def test_more_sessions_than_the_trunk_takes(server: TrunkServer) -> None:
    transports = [GrpcTransport(server.address, spec()) for _ in range(LIMITS.max_sessions)]
    with pytest.raises(TrunkBusyError, match="4 sessions are open, the trunk's limit"):
        GrpcTransport(server.address, spec())
    for transport in transports:
        transport.close()
    assert eventually(lambda: server.num_sessions == 0)
    assert works(server)


@pytest.mark.slow
def test_more_streams_than_the_trunk_takes(server: TrunkServer) -> None:
    silos = [RawSilo(server.address) for _ in range(LIMITS.max_sessions + 30)]
    codes = {silo.call.code() for silo in silos if not silo.call.is_active()}
    assert codes <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert eventually(lambda: sum(not silo.call.is_active() for silo in silos) >= 14)
    for silo in silos:
        silo.close()
    assert eventually(lambda: _opens(server))


@pytest.mark.medium
def test_streams_that_say_nothing_make_room_in_time(
    backend: AffineBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flower_split.server.grpc.service._HELLO_SECONDS", 1.0)
    limits = ServiceLimits(max_sessions=1, max_deliveries=1)
    with hosting(backend, limits=limits) as server:
        mute = [RawSilo(server.address) for _ in range(40)]  # more than the trunk takes at all
        with GrpcTransport(server.address, spec(), patience=60.0) as transport:
            transport.finish()
        endings = {silo.ending()[:2] for silo in mute}
        assert (grpc.StatusCode.UNAVAILABLE, "TrunkUnavailableError") in endings
        for silo in mute:
            silo.close()


def _opens(server: TrunkServer) -> bool:
    try:
        return works(server)
    except TrunkBusyError:
        return False
