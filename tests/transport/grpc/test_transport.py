"""The gRPC transport: same results as a direct call, futures, and failures that name the trunk."""

import gc
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import torch
from affine_backend import AffineBackend, backward, forward, spec
from hosting import eventually, hosting, nothing_left

from flower_split.config.sections import CODECS, WireConfig
from flower_split.errors import (
    ConfigError,
    SequenceError,
    TrunkError,
    TrunkUnavailableError,
    WireError,
)
from flower_split.proto import trunk_pb2 as pb
from flower_split.proto.trunk_pb2_grpc import TrunkServicer, add_TrunkServicer_to_server
from flower_split.server.grpc.server import TrunkServer
from flower_split.server.grpc.service import ServiceLimits
from flower_split.transport.grpc.channel import Keepalive
from flower_split.transport.grpc.handshake import welcome_frame
from flower_split.transport.grpc.replies import encode_reply
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.local import InProcessTransport
from flower_split.transport.messages import (
    CacheEdit,
    CacheUse,
    SessionLimits,
    SessionSummary,
    StepRequest,
    WireBytes,
)
from flower_split.transport.rules import HopRules


@pytest.fixture
def backend() -> AffineBackend:
    return AffineBackend()


@pytest.fixture
def server(backend: AffineBackend) -> Iterator[TrunkServer]:
    with hosting(backend) as server:
        yield server


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_results_equal_the_local_transport_s_to_the_bit(
    server: TrunkServer, backend: AffineBackend, codec: str, dtype: str
) -> None:
    agreed = spec(dtype=dtype, wire=WireConfig.uniform(codec))
    kind = getattr(torch, dtype)
    with (
        GrpcTransport(server.address, agreed) as remote,
        InProcessTransport(AffineBackend(), agreed) as local,
    ):
        for number, shape in enumerate([(1, 1, 8), (2, 7, 8), (3, 200, 1024)]):
            h1 = forward(number, hidden=torch.randn(shape).to(kind))
            g2 = backward(number, *shape)
            object.__setattr__(g2, "grad", g2.grad.to(kind))
            for mine, theirs in (
                (remote.forward(h1), local.forward(h1)),
                (remote.backward(g2), local.backward(g2)),
            ):
                result, expected = mine.result(), theirs.result()
                assert result is not None and expected is not None
                assert result.dtype == kind and torch.equal(result, expected)
        step = StepRequest(step=0, learning_rate=0.5, norms_before=(1.5,), norms_after=(2.5, 0.1))
        assert remote.step(step).result() == local.step(step).result()
        assert remote.finish() == local.finish()
        assert remote.bytes_sent == local.bytes_sent > 0
        assert remote.bytes_received == local.bytes_received > 0


def test_the_backend_sees_every_field(server: TrunkServer, backend: AffineBackend) -> None:
    request = forward(
        4,
        attention_mask=torch.tensor([[True] * 6, [False] * 3 + [True] * 3]),
        position_ids=torch.tensor([[0, 1, 2, 3]]),
        keep_graph=False,
        dropout=True,
        cache=CacheUse(
            cache_id=9, past_length=2, edits=(CacheEdit(kind="reorder", values=(1, 0)),)
        ),
    )
    with GrpcTransport(server.address, spec(seed=2**63)) as transport:
        transport.forward(request).result()
    seen = backend.requests[0]
    for name, value in vars(request).items():
        other = getattr(seen, name)
        same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        assert same, name
    assert backend.specs == [spec(seed=2**63)]


def test_many_microbatches_are_answered_in_order(
    server: TrunkServer, backend: AffineBackend
) -> None:
    numbers = range(40)
    done: list[int] = []
    with GrpcTransport(server.address, spec()) as transport:
        pairs: list[tuple[Future[Any], Future[Any]]] = []
        for number in numbers:
            first = transport.forward(forward(number, 2, 50, 128))
            first.add_done_callback(lambda _, number=number: done.append(number))  # type: ignore[misc]
            pairs.append((first, transport.backward(backward(number, 2, 50, 128))))
        for number, (h2, g1) in zip(numbers, pairs, strict=True):
            assert torch.equal(h2.result(), forward(number, 2, 50, 128).hidden * 3 + 1)
            assert torch.equal(g1.result(), backward(number, 2, 50, 128).grad * 3)
    assert done == list(numbers)
    assert [number for name, number in backend.events if name == "forward"] == list(numbers)


def test_calls_do_not_wait_for_the_trunk() -> None:
    backend = AffineBackend(delay=0.2)
    with hosting(backend) as server, GrpcTransport(server.address, spec()) as transport:
        before = time.monotonic()
        futures = [transport.forward(forward(number)) for number in range(3)]
        assert time.monotonic() - before < 0.2
        assert [future.result().shape for future in futures] == [(2, 4, 8)] * 3


def test_finish_counts_and_ends_the_session(server: TrunkServer, backend: AffineBackend) -> None:
    transport = GrpcTransport(server.address, spec())
    transport.forward(forward(0)).result()
    transport.forward(forward(1)).result()
    transport.release(0)
    transport.drop_cache(3)
    transport.backward(backward(1)).result()
    transport.step(StepRequest(step=0, learning_rate=1e-3)).result()
    summary = transport.finish()
    counted = WireBytes(h1=512, h2=512, g2=256, g1=256)
    assert summary == SessionSummary(
        steps=1, forwards=2, backwards=1, tokens=16, wire_bytes=counted
    )
    with pytest.raises(TrunkUnavailableError, match="session has ended"):
        transport.forward(forward(2)).result()
    assert eventually(lambda: backend.count("close") == 1)
    assert [name for name, _ in backend.events] == [
        *("open", "forward", "forward", "release", "drop_cache"),
        *("backward", "step", "finish", "close"),
    ]


def test_leaving_without_finish_closes_without_finish(
    server: TrunkServer, backend: AffineBackend
) -> None:
    transport = GrpcTransport(server.address, spec())
    pending = transport.forward(forward(0))
    transport.close()
    transport.close()
    transport.release(0)
    transport.drop_cache(0)
    if pending.exception() is not None:
        assert isinstance(pending.exception(), TrunkUnavailableError)
    with pytest.raises(TrunkUnavailableError, match="was closed"):
        transport.finish()
    assert eventually(lambda: backend.count("close") == 1)
    assert backend.count("finish") == 0


def test_one_failure_fails_everything_pending_and_later_alike(server: TrunkServer) -> None:
    with GrpcTransport(server.address, spec()) as transport:
        futures: list[Future[Any]] = [transport.forward(forward(0))]
        futures.append(transport.backward(backward(7)))
        futures += [transport.forward(forward(number)) for number in (1, 2)]
        error = futures[1].exception()
        assert type(error) is SequenceError
        assert str(error) == f"trunk at {server.address}: microbatch 7 has no activations here"
        assert [future.exception() for future in futures[2:]] == [error, error]
        assert transport.step(StepRequest(step=0, learning_rate=0.1)).exception() is error
        with pytest.raises(SequenceError):
            transport.finish()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (forward(0, hidden=torch.full((1, 1, 8), 1e6)), "h1: values beyond 65504.*bf16"),
        (forward(0, hidden=torch.zeros(3, 8)), "h1: torch.float32 of shape"),
        (forward(0, hidden="no tensor"), "ForwardRequest cannot be encoded"),
    ],
)
def test_what_cannot_be_sent_fails_the_session(
    server: TrunkServer, request_: Any, message: str
) -> None:
    with GrpcTransport(server.address, spec(wire=WireConfig(h1="fp16"))) as transport:
        with pytest.raises(WireError, match=message):
            transport.forward(request_).result(20)
        with pytest.raises(WireError):
            transport.forward(forward(1)).result(20)


def test_the_trunk_s_limits_are_known(backend: AffineBackend) -> None:
    limits = SessionLimits(max_in_flight=3, max_message_tokens=10, max_cached_tokens=20)
    with (
        hosting(backend, limits=ServiceLimits(session=limits)) as server,
        GrpcTransport(server.address, spec()) as transport,
    ):
        assert transport.limits == limits


@pytest.mark.medium
def test_a_forgotten_transport_ends_its_session(
    server: TrunkServer, backend: AffineBackend
) -> None:
    with nothing_left():
        transport = GrpcTransport(server.address, spec())
        future = transport.forward(forward(0))
        future.result()
        del transport, future
        gc.collect()
        assert eventually(lambda: backend.count("close") == 1)


def test_close_from_a_future_s_callback_does_not_hang(server: TrunkServer) -> None:
    with nothing_left():
        transport = GrpcTransport(server.address, spec())
        closed = threading.Event()

        def close(_: Future[Any]) -> None:
            transport.close()
            closed.set()

        transport.forward(forward(0)).add_done_callback(close)
        assert closed.wait(20)


def test_a_future_in_flight_cannot_be_cancelled(server: TrunkServer) -> None:
    with GrpcTransport(server.address, spec()) as transport:
        future = transport.forward(forward(0))
        assert not future.cancel()
        assert future.result().shape == (2, 4, 8)


def test_no_trunk_at_the_address() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        before = time.monotonic()
        with nothing_left(), pytest.raises(TrunkUnavailableError, match=address):
            GrpcTransport(address, spec())
        assert time.monotonic() - before < 8


@pytest.mark.medium
def test_something_that_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            nothing_left(),
            pytest.raises(TrunkUnavailableError, match=f"{address} did not answer within 0.5 s"),
        ):
            GrpcTransport(address, spec(), connect_timeout=0.5)


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("", {}, "must be host:port"),
        ("a:1", {"connect_timeout": 0.0}, "timeouts must be positive"),
        ("a:1", {"timeout": float("nan")}, "timeouts must be positive"),
        ("a:1", {"patience": -1.0}, "timeouts must be positive"),
        ("a:1", {}, "needs TLS: pass tls=, or plaintext=True"),
        ("192.0.2.1:9443", {}, "needs TLS"),
        ("[2001:db8::1]:9443", {}, "needs TLS"),
    ],
)
def test_settings_are_checked(address: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GrpcTransport(address, spec(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("interval", "timeout"), [(0.1, 5.0), (5.0, 0.1), (float("nan"), 1.0)])
def test_keepalive_is_checked(interval: float, timeout: float) -> None:
    with pytest.raises(ConfigError, match="keepalive"):
        Keepalive(interval=interval, timeout=timeout)


class OddTrunk(TrunkServicer):
    """Answers a hello, then sends what a test wants; goes silent afterwards."""

    def __init__(self, frames: Iterable[pb.ServerFrame]) -> None:
        self.frames = frames
        self.ended = threading.Event()

    def Session(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        next(request_iterator)
        context.add_callback(self.ended.set)
        for frame in self.frames:
            if self.ended.is_set():
                return
            yield frame
        self.ended.wait(30)


@pytest.fixture
def odd_trunk() -> Iterator[Callable[[Iterable[pb.ServerFrame]], str]]:
    servers = []
    pool = ThreadPoolExecutor(4, thread_name_prefix="odd-trunk")

    def start(frames: Iterable[pb.ServerFrame]) -> str:
        server = grpc.server(pool)
        add_TrunkServicer_to_server(OddTrunk(frames), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(0).wait()
    pool.shutdown()


WELCOME = welcome_frame(SessionLimits())


@pytest.mark.medium
def test_a_trunk_that_stops_answering(odd_trunk: Callable[..., str]) -> None:
    address = odd_trunk([WELCOME])
    with nothing_left(), GrpcTransport(address, spec(), timeout=0.6) as transport:
        time.sleep(1.0)  # owing nothing, a trunk may be silent for as long as it likes
        future = transport.forward(forward(0))
        with pytest.raises(TrunkUnavailableError, match=r"did not answer within 0\.6 s"):
            future.result(20)


@pytest.mark.medium
def test_a_trunk_that_never_completes_a_reply(odd_trunk: Callable[..., str]) -> None:
    request = forward(0)
    head = next(encode_reply(request, request.hidden, HopRules(spec())).frames())
    head.ClearField("chunks")
    asked = threading.Event()

    def drip() -> Iterator[pb.ServerFrame]:
        yield WELCOME
        asked.wait(20)
        yield head
        while True:
            time.sleep(0.2)
            yield pb.ServerFrame()

    address = odd_trunk(drip())
    with nothing_left(), GrpcTransport(address, spec(), timeout=0.6) as transport:
        future = transport.forward(request)
        assert eventually(lambda: transport.bytes_sent > 0)
        asked.set()
        with pytest.raises(TrunkUnavailableError, match=r"did not answer within 1\.2 s"):
            future.result(20)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([pb.ServerFrame(step=pb.StepReply())], "the first frame was no welcome"),
        ([WELCOME, WELCOME], "a reply that was not asked for|expected the answer to"),
        ([WELCOME, pb.ServerFrame(forward=pb.ForwardReply(microbatch=5))], "asked for|expected"),
    ],
)
def test_a_trunk_that_talks_nonsense(
    odd_trunk: Callable[..., str], frames: list[pb.ServerFrame], message: str
) -> None:
    address = odd_trunk(frames)
    with (
        nothing_left(),
        pytest.raises(TrunkError, match=message),
        GrpcTransport(address, spec()) as transport,
    ):
        transport.forward(forward(0)).result(20)


def test_a_server_of_another_kind() -> None:
    backend = AffineBackend()
    with (
        hosting(backend) as server,
        nothing_left(),
        pytest.raises(TrunkUnavailableError, match="UNIMPLEMENTED"),
    ):
        GrpcTransport(server.health_address, spec())
