"""Silos and trunks as real processes: killed, frozen, and left without a goodbye."""

import signal
import subprocess
import time

import pytest
from affine_backend import AffineBackend, forward, spec
from hosting import eventually, hosting, nothing_left
from started_processes import line, running

from flower_split.errors import TrunkUnavailableError
from flower_split.server.grpc.service import ServiceLimits
from flower_split.transport.grpc.channel import Keepalive
from flower_split.transport.grpc.transport import GrpcTransport

pytestmark = pytest.mark.slow

BRISK = Keepalive(interval=1.0, timeout=1.0)

SILO = """
import sys
from affine_backend import forward, spec
from flower_split.transport.grpc.transport import GrpcTransport
print("imported", file=sys.stderr, flush=True)
transport = GrpcTransport(sys.argv[1], spec())
transport.forward(forward(0)).result()
print("working", flush=True)
sys.stdin.read()
"""

TRUNK = """
import sys
from affine_backend import AffineBackend
from flower_split.server.grpc.server import TrunkServer
from flower_split.server.grpc.service import ServiceLimits
print("imported", file=sys.stderr, flush=True)
limits = ServiceLimits(reconnect_timeout=0.0)
server = TrunkServer(AffineBackend(), sys.argv[1], limits=limits).start()
print(server.address, flush=True)
sys.stdin.read()
"""


def complaints(process: "subprocess.Popen[str]") -> str:
    """What it says until it ends by itself; what libraries say when they are imported is theirs."""
    _, said = process.communicate("", timeout=20)
    return said.partition("imported\n")[2]


def test_a_killed_silo_frees_its_session_and_commits_nothing() -> None:
    backend = AffineBackend()
    with hosting(backend, limits=ServiceLimits(max_sessions=1)) as server:
        with running(SILO, server.address) as silo:
            assert line(silo) == "working" and server.num_sessions == 1
            silo.kill()
            assert eventually(lambda: server.num_sessions == 0, 10)
        assert backend.count("close") == 1 and backend.count("finish") == 0
        with GrpcTransport(server.address, spec()) as transport:
            assert transport.forward(forward(0)).result(20).shape == (2, 4, 8)


def test_a_frozen_silo_frees_its_seat_within_15_seconds() -> None:
    backend = AffineBackend()
    with hosting(backend) as server, running(SILO, server.address) as silo:
        assert line(silo) == "working"
        silo.send_signal(signal.SIGSTOP)
        assert eventually(lambda: server.num_sessions == 0, 15)
        assert backend.count("close") == 1


def test_a_silo_that_forgets_to_leave_exits_all_the_same() -> None:
    with hosting(AffineBackend()) as server, running(SILO, server.address) as silo:
        assert line(silo) == "working"
        assert (complaints(silo), silo.returncode) == ("", 0)
        assert eventually(lambda: server.num_sessions == 0, 10)


def test_a_trunk_that_is_not_stopped_exits_all_the_same() -> None:
    with running(TRUNK, "127.0.0.1:0") as trunk:
        transport = GrpcTransport(line(trunk), spec())
        transport.forward(forward(0)).result(20)
        assert (complaints(trunk), trunk.returncode) == ("", 0)
        with pytest.raises(TrunkUnavailableError):
            transport.forward(forward(1)).result(20)
        transport.close()


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize(("how", "seconds"), [(signal.SIGKILL, 5), (signal.SIGSTOP, 12)])
def test_a_trunk_that_dies_or_freezes_is_noticed(how: signal.Signals, seconds: float) -> None:
    with running(TRUNK, "127.0.0.1:0") as trunk, nothing_left():
        address = line(trunk)
        with GrpcTransport(address, spec(), keepalive=BRISK) as transport:
            transport.forward(forward(0)).result(20)
            trunk.send_signal(how)
            before = time.monotonic()
            with pytest.raises(TrunkUnavailableError, match=address):
                transport.forward(forward(1)).result(30)
            assert time.monotonic() - before < seconds


def test_a_frozen_trunk_refuses_a_new_session_in_time() -> None:
    with running(TRUNK, "127.0.0.1:0") as trunk, nothing_left():
        address = line(trunk)
        trunk.send_signal(signal.SIGSTOP)
        with pytest.raises(TrunkUnavailableError, match=f"{address} did not answer within 1 s"):
            GrpcTransport(address, spec(), connect_timeout=1.0)


def test_a_trunk_that_comes_back_on_its_port_serves_again() -> None:
    with running(TRUNK, "127.0.0.1:0") as trunk:
        address = line(trunk)
        GrpcTransport(address, spec()).close()
    with running(TRUNK, address) as trunk:
        assert line(trunk) == address
        with GrpcTransport(address, spec()) as transport:
            assert transport.forward(forward(0)).result(20).shape == (2, 4, 8)
