"""The trunk server's life: it starts, serves, refuses to half start, and leaves nothing behind."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch
from affine_backend import AffineBackend, backward, forward, spec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hosting import eventually, hosting, is_free, nothing_left
from raw_silo import RawSilo

from flower_split.errors import (
    AdapterError,
    ConfigError,
    DeadlineError,
    HandshakeError,
    SequenceError,
    TrunkBusyError,
    TrunkError,
    TrunkUnavailableError,
)
from flower_split.server.grpc.server import TrunkServer
from flower_split.server.grpc.service import ServiceLimits
from flower_split.transport.grpc.handshake import hello_frame
from flower_split.transport.grpc.requests import encode_request
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.rules import HopRules


@pytest.fixture
def backend() -> AffineBackend:
    return AffineBackend()


@pytest.fixture
def server(backend: AffineBackend) -> Iterator[TrunkServer]:
    with hosting(backend) as server:
        yield server


def test_start_and_stop_leave_nothing(backend: AffineBackend) -> None:
    with nothing_left(servers_too=True):
        for _ in range(3):
            server = TrunkServer(backend)
            assert server.port == 0 and server.health_address == ""
            assert server.start() is server
            port, health = server.port, server.health_address
            assert port > 0 and server.address == f"127.0.0.1:{port}" != health
            server.stop()
            server.stop()
            assert is_free(port) and is_free(int(health.rpartition(":")[2]))


def test_a_server_starts_once(backend: AffineBackend) -> None:
    server = TrunkServer(backend)
    server.stop()
    with pytest.raises(ConfigError, match="starts once"):
        server.start()
    with hosting(backend) as server, pytest.raises(ConfigError, match="starts once"):
        server.start()


def test_a_port_in_use_is_named(backend: AffineBackend, server: TrunkServer) -> None:
    with nothing_left(), pytest.raises(ConfigError, match=f"cannot listen on {server.address}"):
        TrunkServer(backend, server.address).start()
    taken = int(server.health_address.rpartition(":")[2])
    with (
        nothing_left(),
        pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{taken}: the port is in use"),
    ):
        TrunkServer(backend, health_port=taken).start()


def test_a_host_of_another_machine_is_named(backend: AffineBackend) -> None:
    with (
        nothing_left(),
        pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:0: the host is not one"),
    ):
        TrunkServer(backend, "192.0.2.1:0", plaintext=True).start()


@pytest.mark.parametrize("address", ["", "localhost", ":1", "a:b", "a:70000", "a:-1"])
def test_a_malformed_address_is_refused(backend: AffineBackend, address: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        TrunkServer(backend, address)
    if address not in ("", "localhost"):  # a host alone is advertised with the bound port
        with pytest.raises(ConfigError, match="host:port"):
            TrunkServer(backend, advertise=address)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_sessions": 0},
        {"idle_timeout": 0.0},
        {"idle_timeout": float("nan")},
        {"transfer_timeout": 0.0},
        {"least_rate": 0},
        {"reconnect_timeout": -1.0},
    ],
)
def test_limits_are_checked(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        ServiceLimits(**limits)  # type: ignore[arg-type]


def test_silos_are_told_where_to_connect(backend: AffineBackend) -> None:
    with hosting(backend, advertise="trunk.example:443") as server:
        assert server.address == "trunk.example:443"
    with hosting(backend, address="0.0.0.0:0", plaintext=True) as server:
        assert server.address == f"{socket.gethostname()}:{server.port}"
        with GrpcTransport(f"127.0.0.1:{server.port}", spec()) as transport:
            transport.finish()


def check_health(server: TrunkServer, service: str = "") -> int:
    with grpc.insecure_channel(server.health_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        request = health_pb2.HealthCheckRequest(service=service)
        status: int = stub.Check(request, timeout=20).status
        return status


@pytest.mark.slow
def test_health_is_answered_even_when_the_trunk_is_full(backend: AffineBackend) -> None:
    with hosting(backend, limits=ServiceLimits(max_sessions=1)) as server:
        silos = [RawSilo(server.address) for _ in range(30)]
        assert eventually(lambda: sum(not silo.call.is_active() for silo in silos) >= 13)
        serving = health_pb2.HealthCheckResponse.SERVING
        assert check_health(server) == check_health(server, "flower_split.v1.Trunk") == serving
        for silo in silos:
            silo.close()


def test_health_can_be_left_out(backend: AffineBackend) -> None:
    with hosting(backend, health=False) as server:
        assert server.health_address == ""


def test_the_backend_is_called_from_one_thread_and_closed_once(
    server: TrunkServer, backend: AffineBackend
) -> None:
    def silo(_: int) -> None:
        with GrpcTransport(server.address, spec()) as transport:
            for number in range(5):
                transport.forward(forward(number)).result(20)
                transport.backward(backward(number)).result(20)
            transport.finish()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(silo, range(12)))
    assert eventually(lambda: server.num_sessions == 0)
    assert len(backend.threads) == 1 and "trunk-compute" in backend.threads.pop()
    counts = {name: backend.count(name) for name in ("open", "finish", "close", "forward")}
    assert counts == {"open": 12, "finish": 12, "close": 12, "forward": 60}


def test_idle_streams_do_not_starve_a_working_one(
    server: TrunkServer, backend: AffineBackend
) -> None:
    idle = [GrpcTransport(server.address, spec()) for _ in range(16)]
    mute = [RawSilo(server.address) for _ in range(16)]
    with GrpcTransport(server.address, spec()) as transport:
        for number in range(20):
            h2 = transport.forward(forward(number)).result(10)
            assert torch.equal(h2, forward(number).hidden * 3 + 1)
    for one in (*idle, *mute):
        one.close()
    assert eventually(lambda: backend.count("close") == 17)


def test_stop_ends_open_sessions_and_says_so(backend: AffineBackend) -> None:
    with nothing_left(servers_too=True):
        server = TrunkServer(backend).start()
        with GrpcTransport(server.address, spec()) as transport:
            transport.forward(forward(0)).result(20)
            waiting = [transport, RawSilo(server.address)]
            before = time.monotonic()
            server.stop(grace=0.2)
            assert time.monotonic() - before < 5
            assert backend.events[-1] == ("close", None) and backend.count("close") == 1
            with pytest.raises(TrunkUnavailableError, match=server.address):
                transport.forward(forward(1)).result(20)
            waiting[1].close()


@pytest.mark.medium
def test_stop_waits_for_the_call_that_computes() -> None:
    backend = AffineBackend(delay=1.0)
    with nothing_left(servers_too=True):
        server = TrunkServer(backend).start()
        with GrpcTransport(server.address, spec()) as transport:
            futures = [transport.forward(forward(number)) for number in range(5)]
            assert eventually(lambda: backend.count("forward") == 1)
            server.stop(grace=0.0)
            assert [name for name, _ in backend.events] == ["open", "forward", "close"]
            for future in futures:
                assert isinstance(future.exception(20), TrunkUnavailableError)


def test_a_refused_handshake_reaches_the_silo(server: TrunkServer, backend: AffineBackend) -> None:
    def refuse(name: str) -> None:
        if name == "open":
            raise HandshakeError("the silo and the trunk differ in seed")

    backend.trouble = refuse
    with nothing_left(), pytest.raises(HandshakeError, match=f"{server.address}: .*differ in seed"):
        GrpcTransport(server.address, spec())
    assert backend.count("close") == 0 and eventually(lambda: server.num_sessions == 0)


def test_an_adapter_that_does_not_fit_is_a_refused_handshake(
    server: TrunkServer, backend: AffineBackend
) -> None:
    def refuse(name: str) -> None:
        raise AdapterError("no such module")

    backend.trouble = refuse
    with pytest.raises(HandshakeError, match="no such module"):
        GrpcTransport(server.address, spec())


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (SequenceError, SequenceError),
        (TrunkBusyError, TrunkBusyError),
        (torch.OutOfMemoryError, TrunkBusyError),
        (RuntimeError, TrunkUnavailableError),
        (KeyError, TrunkUnavailableError),
    ],
)
def test_a_fault_of_the_backend_ends_that_session_alone(
    server: TrunkServer,
    backend: AffineBackend,
    caplog: pytest.LogCaptureFixture,
    fault: type[Exception],
    expected: type[TrunkError],
) -> None:
    with GrpcTransport(server.address, spec()) as bystander:

        def fail(name: str) -> None:
            if name == "forward":
                raise fault("what the backend says")

        backend.trouble = fail
        with GrpcTransport(server.address, spec()) as transport:
            error = transport.forward(forward(0)).exception(20)
        assert type(error) is expected
        assert ("what the backend says" in str(error)) == (fault is expected)
        backend.trouble = lambda name: None
        assert bystander.forward(forward(0)).result(20).shape == (2, 4, 8)
    unexpected = not issubclass(fault, TrunkError | torch.OutOfMemoryError)
    assert any(record.exc_info for record in caplog.records) == unexpected
    assert eventually(lambda: backend.count("close") == 2)


def test_a_fault_while_closing_is_logged_and_frees_the_seat(
    server: TrunkServer, backend: AffineBackend, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str) -> None:
        if name == "close":
            raise RuntimeError("stuck")

    backend.trouble = fail
    with GrpcTransport(server.address, spec()) as transport:
        transport.finish()
    assert eventually(lambda: server.num_sessions == 0)
    assert "closing a session failed" in caplog.text


def test_nothing_that_a_silo_sent_is_logged(
    server: TrunkServer, backend: AffineBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="flower_split")
    with RawSilo(server.address) as silo:
        silo.send(hello_frame(spec(adapter="secret"), None), hello_frame(spec(), None)).ending()
    with pytest.raises(SequenceError), GrpcTransport(server.address, spec()) as transport:
        transport.backward(backward(0)).result(20)
    assert "secret" not in caplog.text and "tensor(" not in caplog.text


def test_an_idle_session_is_closed(backend: AffineBackend) -> None:
    with (
        hosting(backend, limits=ServiceLimits(idle_timeout=0.4)) as server,
        GrpcTransport(server.address, spec()) as transport,
    ):
        assert eventually(lambda: backend.count("close") == 1, 5)
        with pytest.raises(DeadlineError, match=r"idle for 0\.4 s"):
            transport.forward(forward(0)).result(20)


@pytest.mark.medium
def test_a_session_that_waits_for_the_trunk_is_not_idle() -> None:
    backend = AffineBackend(delay=1.0)
    with (
        hosting(backend, limits=ServiceLimits(idle_timeout=0.4)) as server,
        GrpcTransport(server.address, spec()) as transport,
    ):
        assert transport.forward(forward(0)).result(20).shape == (2, 4, 8)


@pytest.mark.medium
def test_a_silo_that_does_not_read_is_closed(backend: AffineBackend) -> None:
    """Replies pile up until flow control stops the trunk's writer; the session must not stay."""
    limits = ServiceLimits(transfer_timeout=1.0, least_rate=1 << 30)
    with hosting(backend, limits=limits) as server, RawSilo(server.address) as silo:
        silo.send(hello_frame(spec(), None))
        for number in range(60):
            request = forward(number, 4, 64, 1024, keep_graph=False)
            silo.send(*encode_request(request, HopRules(spec())).frames())
        assert eventually(lambda: backend.count("close") == 1, 30)
        assert 0 < backend.count("forward") < 60
        assert silo.ending()[:2] == (grpc.StatusCode.DEADLINE_EXCEEDED, "DeadlineError")
        assert "a reply of 1048576 bytes was not taken within 1 s" in silo.call.details()


def test_two_servers_in_one_process(server: TrunkServer) -> None:
    other = AffineBackend()
    with (
        GrpcTransport(server.address, spec()) as one,
        hosting(other) as second,
        GrpcTransport(second.address, spec()) as two,
    ):
        for number in range(20):
            one.forward(forward(number))
            two.forward(forward(number)).result(20)
        two.finish()
        assert one.finish().forwards == 20
    assert other.count("forward") == 20


def test_threads_of_the_server_have_names(server: TrunkServer) -> None:
    assert "trunk-server" in {thread.name for thread in threading.enumerate()}
