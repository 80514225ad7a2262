"""The delivery service gives the parts of its pack to those who may have them, and nothing else."""

import hashlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from affine_backend import AffineBackend, forward, spec
from delivering import MIB, RawFetcher, save_model_of_several_mib
from hosting import eventually, hosting
from safetensors.torch import load_file

from flower_split.delivery.pack import Pack, Part
from flower_split.errors import TokenError, WeightsError
from flower_split.proto import trunk_pb2 as pb
from flower_split.segments.loading.extents import tensor_extents
from flower_split.server.grpc.server import TrunkServer
from flower_split.server.grpc.service import ServiceLimits
from flower_split.server.tickets import TicketBook
from flower_split.tls import ClientTls, ServerTls
from flower_split.transport.grpc.delivery import GrpcDelivery
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.messages import Ticket

REFUSED = (
    0,
    grpc.StatusCode.INVALID_ARGUMENT,
    "WireError",
    "there is no such part to deliver, or not so much of it",
)
INVALID = (0, grpc.StatusCode.UNAUTHENTICATED, "TokenError")
FOREIGN = (0, grpc.StatusCode.PERMISSION_DENIED, "ForeignRunError")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_of_several_mib(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pack(model: Path) -> Iterator[Pack]:
    with Pack(model, bottom_layers=1, top_layers=1) as pack:
        yield pack


@pytest.fixture(scope="module")
def tls() -> ServerTls:
    return ServerTls.ephemeral()


@pytest.fixture
def book() -> TicketBook:
    return TicketBook()


@pytest.fixture
def server(pack: Pack, tls: ServerTls, book: TicketBook) -> Iterator[TrunkServer]:
    with hosting(AffineBackend(), pack=pack, admit=book, tls=tls) as server:
        yield server


class Issuer:
    """Tickets for deliveries, each good for one."""

    def __init__(self, book: TicketBook) -> None:
        self._book, self._number = book, 0

    def __call__(self, node: int = 2) -> Ticket:
        self._number += 1
        return self._book.issue(1, node, 3, "deliver", number=self._number)


@pytest.fixture
def ticket(book: TicketBook) -> Issuer:
    return Issuer(book)


def asks_for_what_is_not_in_the_pack(model: Path) -> dict[str, bytes]:
    """What a silo could think of to get at the trunk, by what it is."""
    file = model / "model.safetensors"
    asked: dict[str, bytes] = {
        "the checkpoint's own file": hashlib.sha256(file.read_bytes()).digest(),
        "a path": str(file).encode(),
        "a path upwards": b"../model.safetensors",
        "a file's name": b"model.safetensors",
        "a name that is in the pack": b"config.json",
        "nothing": b"",
        "a digest and more": hashlib.sha256(b"").digest() + b"\0",
        "a digest in hexadecimal": hashlib.sha256(b"").hexdigest().encode(),
        "the digest of nothing": hashlib.sha256(b"").digest(),
        "zeros": bytes(32),
    }
    extents = tensor_extents(file)
    for name, tensor in load_file(file).items():
        if ".layers.1." in name or ".layers.2." in name:
            content = tensor.numpy().tobytes()
            asked[f"{name} by its name"] = name.encode()
            asked[f"{name} by its digest"] = hashlib.sha256(content).digest()
            asked[f"{name} by its place"] = f"{extents[name].offset}".encode()
    return asked


@pytest.mark.medium
def test_what_is_not_in_the_pack_cannot_be_had(
    server: TrunkServer, tls: ServerTls, model: Path, ticket: Issuer
) -> None:
    asked = asks_for_what_is_not_in_the_pack(model)
    assert len(asked) > 60
    for what, digest in asked.items():
        with RawFetcher(server, tls) as silo:
            assert silo.ask(digest, ticket=ticket()).ending() == REFUSED, what


def test_the_pack_of_other_cuts_cannot_be_had(
    server: TrunkServer, tls: ServerTls, model: Path, pack: Pack, ticket: Issuer
) -> None:
    with Pack(model, bottom_layers=2, top_layers=1) as deeper:
        others = [deeper.digest, *(deeper.manifest.items.keys() - pack.manifest.items.keys())]
    assert len(others) == 2
    for digest in others:
        with RawFetcher(server, tls) as silo:
            assert silo.ask(bytes.fromhex(digest), ticket=ticket()).ending() == REFUSED


def test_offsets_stay_within_the_part(
    server: TrunkServer, tls: ServerTls, pack: Pack, ticket: Issuer
) -> None:
    for item in pack.manifest.weights:
        digest = bytes.fromhex(item.digest)
        for offset in (item.size + 1, item.size + MIB, 2**63, 2**64 - 1):
            with RawFetcher(server, tls) as silo:
                assert silo.ask(digest, offset, ticket()).ending() == REFUSED
        with RawFetcher(server, tls) as silo:
            assert silo.ask(digest, item.size - 1, ticket()).ending()[:2] == (
                1,
                grpc.StatusCode.OK,
            )
        with RawFetcher(server, tls) as silo:
            assert silo.ask(digest, item.size, ticket()).ending()[:2] == (0, grpc.StatusCode.OK)


def test_a_refusal_later_in_the_stream_ends_it(
    server: TrunkServer, tls: ServerTls, pack: Pack, ticket: Issuer
) -> None:
    with RawFetcher(server, tls) as silo:
        silo.ask(bytes.fromhex(pack.digest), ticket=ticket())
        silo.ask(b"model.safetensors").ask(bytes.fromhex(pack.digest))
        received, *status = silo.ending()
    assert received == len(pack.manifest.to_bytes())
    assert tuple(status) == REFUSED[1:]


def test_nothing_is_delivered_where_nothing_is_offered(
    tls: ServerTls, book: TicketBook, pack: Pack, ticket: Issuer
) -> None:
    with hosting(AffineBackend(), admit=book, tls=tls) as server, RawFetcher(server, tls) as silo:
        assert silo.ask(bytes.fromhex(pack.digest), ticket=ticket()).ending() == REFUSED


def tickets_that_open_nothing(
    book: TicketBook,
) -> dict[str, tuple[Ticket | None, tuple[object, ...]]]:
    good = book.issue(1, 2, 3, "deliver")
    used = book.issue(1, 2, 3, "deliver", number=1)
    book.claim(used, "deliver")
    spent = book.issue(1, 2, 3, "deliver", number=2)
    book.claim(spent, "deliver")
    book.spend(spent)
    revoked = book.issue(1, 2, 3, "deliver", number=3)
    book.revoke(revoked)

    def like(ticket: Ticket, **changes: int) -> Ticket:
        fields = {"run_id": 1, "node_id": 2, "server_round": 3, **changes}
        return Ticket(token=ticket.token, **fields)

    return {
        "none": (None, INVALID),
        "an empty one": (Ticket(run_id=1, node_id=2, server_round=3, token=""), INVALID),
        "an unknown one": (Ticket(run_id=1, node_id=2, server_round=3, token="x" * 43), INVALID),
        "one in use": (used, INVALID),
        "a used one": (spent, INVALID),
        "a revoked one": (revoked, INVALID),
        "an expired one": (book.issue(1, 9, 3, "deliver", seconds=0.0), INVALID),
        "of another run": (like(good, run_id=9), FOREIGN),
        "of another node": (like(good, node_id=9), FOREIGN),
        "of another round": (like(good, server_round=9), FOREIGN),
        "a training's": (book.issue(1, 2, 3, "train"), FOREIGN),
        "an evaluation's": (book.issue(1, 2, 3, "evaluate"), FOREIGN),
        "any session's": (book.issue(1, 2, 3), FOREIGN),
    }


def test_only_a_deliverys_own_ticket_opens_it_and_once(
    server: TrunkServer, tls: ServerTls, pack: Pack, book: TicketBook
) -> None:
    digest = bytes.fromhex(pack.digest)
    said: dict[object, set[str]] = {}
    for what, (ticket, expected) in tickets_that_open_nothing(book).items():
        with RawFetcher(server, tls) as silo:
            *found, details = silo.ask(digest, ticket=ticket).ending()
        assert tuple(found) == expected, what
        said.setdefault(expected, set()).add(details)
    assert all(len(texts) == 1 for texts in said.values())  # no hint of what exists

    good = book.issue(1, 5, 3, "deliver")
    for expected_code in (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED):
        with RawFetcher(server, tls) as silo:
            assert silo.ask(digest, ticket=good).ending()[1] == expected_code


def test_a_deliverys_ticket_opens_no_session(
    server: TrunkServer, tls: ServerTls, ticket: Issuer
) -> None:
    with pytest.raises(Exception, match="issued for another"):
        GrpcTransport(server.address, spec(), ticket(), tls=ClientTls(ca=tls.ca))


def test_another_version_and_strange_bytes_are_refused(
    server: TrunkServer, tls: ServerTls, ticket: Issuer
) -> None:
    with RawFetcher(server, tls) as silo:
        received, code, name, details = silo.send(pb.DeliverRequest(protocol_version=99)).ending()
    assert (received, code, name) == (0, grpc.StatusCode.FAILED_PRECONDITION, "HandshakeError")
    assert "the silo speaks 99" in details
    with grpc.secure_channel(server.address, grpc.ssl_channel_credentials(tls.ca)) as channel:
        call = channel.stream_stream("/flower_split.v1.Trunk/Deliver")(iter([b"\xff" * 50]))
        with pytest.raises(grpc.RpcError):
            next(call)
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT


def trickle(server: TrunkServer, tls: ServerTls, pack: Pack, ticket: Ticket) -> GrpcDelivery:
    """A delivery of which one piece has come, and the next one is not asked for."""
    stream = GrpcDelivery(server.address, ticket, tls=ClientTls(ca=tls.ca))
    largest = max(pack.manifest.weights, key=lambda item: item.size)
    assert len(next(stream.read(largest.digest, 0))) == MIB
    return stream


class SlowPack:
    """A pack whose pieces take their time."""

    def __init__(self, pack: Pack, seconds: float) -> None:
        self._pack, self._seconds, self.digest = pack, seconds, pack.digest

    def find(self, digest: str) -> Part | None:
        part = self._pack.find(digest)
        return None if part is None else SlowPart(part, self._seconds)


class SlowPart(Part):
    def __init__(self, part: Part, seconds: float) -> None:
        super().__init__([])
        self._part, self._seconds, self.size = part, seconds, part.size

    def read(self, offset: int, length: int) -> bytes:
        time.sleep(self._seconds)
        return self._part.read(offset, length)


@pytest.fixture
def slow(pack: Pack, tls: ServerTls, book: TicketBook) -> Iterator[TrunkServer]:
    limits = ServiceLimits(max_sessions=1, max_deliveries=2)
    backend = AffineBackend()
    with hosting(backend, pack=SlowPack(pack, 0.2), admit=book, tls=tls, limits=limits) as server:
        yield server


@pytest.mark.medium
def test_a_delivery_ends_when_its_round_does(
    slow: TrunkServer, tls: ServerTls, pack: Pack, book: TicketBook, ticket: Issuer
) -> None:
    largest = max(pack.manifest.weights, key=lambda item: item.size)
    stream = GrpcDelivery(slow.address, ticket(), tls=ClientTls(ca=tls.ca))
    pieces = stream.read(largest.digest, 0)
    next(pieces)
    book.end_round(3)
    with pytest.raises(TokenError, match="expired"):
        for _ in range(100):  # the whole part again and again
            for _ in pieces:
                pass
            pieces = stream.read(largest.digest, 0)
    stream.close()
    assert eventually(lambda: slow.num_deliveries == 0)


@pytest.mark.medium
def test_a_silo_that_comes_again_takes_the_place_of_its_lost_stream(
    slow: TrunkServer, tls: ServerTls, pack: Pack, ticket: Issuer
) -> None:
    first = trickle(slow, tls, pack, ticket())
    second = trickle(slow, tls, pack, ticket())
    assert eventually(lambda: slow.num_deliveries == 1)
    other = trickle(slow, tls, pack, ticket(node=7))
    assert slow.num_deliveries == 2
    for stream in (first, second, other):
        stream.close()
    assert eventually(lambda: slow.num_deliveries == 0)


class Books:
    """The tickets of several runs, as a trunk service has them at one port."""

    def __init__(self, of_tokens: dict[str, TicketBook]) -> None:
        self._of_tokens = of_tokens

    def __getattr__(self, call: str) -> Callable[..., Any]:
        return lambda ticket, *given: getattr(self._of_tokens[ticket.token], call)(ticket, *given)


@pytest.mark.medium
def test_silos_of_two_runs_with_equal_ids_are_two(
    pack: Pack, tls: ServerTls, book: TicketBook
) -> None:
    books = book, TicketBook()
    tickets = [one.issue(1, 2, 3, "deliver") for one in books]
    admit: Any = Books({ticket.token: one for ticket, one in zip(tickets, books, strict=True)})
    limits = ServiceLimits(max_sessions=1, max_deliveries=2)
    slow = SlowPack(pack, 0.2)
    with hosting(AffineBackend(), pack=slow, admit=admit, tls=tls, limits=limits) as server:
        streams = [trickle(server, tls, pack, ticket) for ticket in tickets]
        assert server.num_deliveries == 2
        for stream in streams:
            stream.close()
        assert eventually(lambda: server.num_deliveries == 0)


@pytest.mark.medium
def test_deliveries_are_bounded_and_take_no_sessions_place(
    slow: TrunkServer, tls: ServerTls, pack: Pack, book: TicketBook, ticket: Issuer
) -> None:
    streams = [trickle(slow, tls, pack, ticket(node=node)) for node in (10, 11)]
    late = ticket(node=12)
    for _ in range(2):  # and the ticket stays good
        with RawFetcher(slow, tls) as silo:
            received, code, name, _ = silo.ask(bytes.fromhex(pack.digest), ticket=late).ending()
        assert (received, code, name) == (
            0,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TrunkBusyError",
        )
    train = book.issue(1, 10, 3, "train")
    with GrpcTransport(slow.address, spec(), train, tls=ClientTls(ca=tls.ca)) as session:
        assert slow.num_sessions == 1
        session.forward(forward(0)).result(20)
        streams.pop().close()
        assert eventually(lambda: slow.num_deliveries == 1)
        with RawFetcher(slow, tls) as silo:
            assert silo.ask(bytes.fromhex(pack.digest), ticket=late).ending()[0] > 0
    streams.pop().close()


def test_a_silo_that_does_not_read_is_let_go(
    pack: Pack, tls: ServerTls, book: TicketBook, ticket: Issuer
) -> None:
    limits = ServiceLimits(idle_timeout=0.5)
    with hosting(AffineBackend(), pack=pack, admit=book, tls=tls, limits=limits) as server:
        stream = trickle(server, tls, pack, ticket())
        assert eventually(lambda: server.num_deliveries == 0)
        stream.close()


@pytest.mark.medium
def test_stopping_ends_a_delivery_in_its_midst(
    pack: Pack, tls: ServerTls, book: TicketBook, ticket: Issuer
) -> None:
    with hosting(AffineBackend(), pack=SlowPack(pack, 0.1), admit=book, tls=tls) as server:
        streams = [trickle(server, tls, pack, ticket(node=node)) for node in range(3)]
        server.stop()
        assert server.num_deliveries == 0
        for stream in streams:
            stream.close()


class BrokenPack:
    def __init__(self, pack: Pack) -> None:
        self.digest = pack.digest

    def find(self, digest: str) -> Part | None:
        class Broken(Part):
            def read(self, offset: int, length: int) -> bytes:
                raise WeightsError("/secret/path was cut off")

        return Broken([b"x"])


def test_a_checkpoint_that_breaks_is_the_servers_own_business(
    pack: Pack, tls: ServerTls, book: TicketBook, ticket: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    broken = BrokenPack(pack)
    with (
        hosting(AffineBackend(), pack=broken, admit=book, tls=tls) as server,
        RawFetcher(server, tls) as silo,
    ):
        _, code, _, details = silo.ask(bytes.fromhex(pack.digest), ticket=ticket()).ending()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "secret" not in details and "/secret/path was cut off" in caplog.text


@pytest.mark.medium
def test_a_session_goes_on_while_others_download(
    server: TrunkServer, tls: ServerTls, pack: Pack, book: TicketBook, ticket: Issuer
) -> None:
    largest = max(pack.manifest.weights, key=lambda item: item.size)
    done = threading.Event()
    pieces = 0

    def download() -> None:
        nonlocal pieces
        with RawFetcher(server, tls) as silo:
            silo.ask(bytes.fromhex(largest.digest), ticket=ticket())
            for reply in silo.call:
                pieces += 1
                if reply.last:
                    if done.is_set():
                        return
                    silo.ask(bytes.fromhex(largest.digest))

    trust = ClientTls(ca=tls.ca)
    with GrpcTransport(server.address, spec(), book.issue(1, 2, 3, "train"), tls=trust) as session:

        def round_trips(first: int) -> list[float]:
            taken = []
            for number in range(first, first + 50):
                start = time.perf_counter()
                session.forward(forward(number)).result(60)
                session.release(number)
                taken.append(time.perf_counter() - start)
            return taken

        alone = round_trips(0)
        downloading = threading.Thread(target=download)
        downloading.start()
        try:
            assert eventually(lambda: pieces > 3)
            beside = round_trips(50)
        finally:
            done.set()
            downloading.join(60)
    # Generous: it must not wait for a download's end, which takes a hundred round trips' time.
    assert statistics.median(beside) < 0.25 + 20 * statistics.median(alone)
