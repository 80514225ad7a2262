"""Silos that take their time on purpose: each loses its session, and nobody else waits for them."""

import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
import torch
from affine_backend import AffineBackend, forward, spec
from cutting_relay import CuttingRelay, Message, Place
from hosting import eventually, hosting
from raw_silo import RawSilo

from flower_split.errors import DeadlineError
from flower_split.proto import trunk_pb2 as pb
from flower_split.server.grpc.server import TrunkServer
from flower_split.server.grpc.service import ServiceLimits
from flower_split.transport.grpc.handshake import hello_frame
from flower_split.transport.grpc.requests import encode_request
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.messages import Release, Request
from flower_split.transport.rules import HopRules

DEADLINE = (grpc.StatusCode.DEADLINE_EXCEEDED, "DeadlineError")
HELLO = hello_frame(spec(), None)
PAUSE = 0.05


def frames(request: Request) -> list[pb.ClientFrame]:
    return list(encode_request(request, HopRules(spec())).frames())


@pytest.fixture
def backend() -> AffineBackend:
    return AffineBackend()


def served(server: TrunkServer, ended: Callable[[], bool]) -> int:
    """How often a silo with manners was answered until `ended`, each time within a second."""
    count = 0
    with GrpcTransport(server.address, spec()) as transport:
        while not ended():
            began = time.monotonic()
            h2 = transport.forward(forward(count, keep_graph=False)).result(20)
            assert torch.equal(h2, forward(count).hidden * 3 + 1)
            assert time.monotonic() - began < 1.0
            count += 1
            time.sleep(PAUSE)
    return count


class Dripping:
    """Sends frames one after the other, with a pause between them, until the stream has ended."""

    def __init__(self, silo: RawSilo, sent: Iterator[pb.ClientFrame]) -> None:
        self._silo, self._sent = silo, sent
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        for frame in self._sent:
            if not self._silo.call.is_active():
                return
            self._silo.send(frame)
            time.sleep(PAUSE)


def bytewise() -> Iterator[pb.ClientFrame]:
    """A request of 256 bytes, each of which comes by itself."""
    (whole,) = frames(forward(0))
    data = whole.chunks[0].data
    whole.ClearField("chunks")
    yield whole
    for offset in range(len(data)):
        yield pb.ClientFrame(chunks=[pb.Chunk(offset=offset, data=data[offset : offset + 1])])


def releases() -> Iterator[pb.ClientFrame]:
    while True:
        yield from frames(Release(microbatch=3))


@pytest.mark.parametrize(
    ("limits", "sent", "message"),
    [
        (
            ServiceLimits(transfer_timeout=0.6, max_sessions=2),
            bytewise,
            "a request of 256 bytes was not complete within 1 s",
        ),
        (
            ServiceLimits(idle_timeout=0.6, max_sessions=2),
            releases,
            "the session was idle for 0.6 s",
        ),
    ],
)
@pytest.mark.medium
def test_a_silo_that_drips_loses_its_session(
    backend: AffineBackend,
    limits: ServiceLimits,
    sent: Callable[[], Iterator[pb.ClientFrame]],
    message: str,
) -> None:
    with hosting(backend, limits=limits) as server, RawSilo(server.address) as silo:
        silo.send(HELLO)
        silo.read()
        began = time.monotonic()
        Dripping(silo, sent())
        assert served(server, lambda: not silo.call.is_active()) > 3
        assert time.monotonic() - began < 10
        assert silo.ending()[:2] == DEADLINE and message in silo.call.details()
        assert eventually(lambda: server.num_sessions == 0)


@pytest.mark.medium
def test_a_frame_that_never_becomes_whole_is_no_progress(backend: AffineBackend) -> None:
    """gRPC tells nothing of it, and of the connection that it is alive."""

    def stall(message: Message) -> Place | None:
        return "stall" if (message.direction, message.number) == ("up", 1) else None

    limits = ServiceLimits(idle_timeout=0.6)
    with (
        hosting(backend, limits=limits) as server,
        CuttingRelay(server.address, stall) as relay,
        GrpcTransport(relay.address, spec()) as transport,
    ):
        with pytest.raises(DeadlineError, match=r"idle for 0\.6 s"):
            transport.forward(forward(0)).result(20)
        assert server.num_sessions == 0
