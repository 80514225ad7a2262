"""Mute connections take the descriptors of the listener that they come to, and no other's."""

import json
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest
from affine_backend import forward, spec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flower_split.server.grpc.descriptors import WANTED, connection_bounds
from flower_split.transport.grpc.transport import GrpcTransport

_SERVER = """
import json, os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (200, int(sys.argv[1])))
sys.path[:0] = json.loads(sys.argv[2])
from affine_backend import AffineBackend
from flower_split.server.grpc.server import TrunkServer
with TrunkServer(AffineBackend()) as server:
    print(json.dumps([server.address, server.health_address]), flush=True)
    for _ in sys.stdin:
        open(os.devnull).close()
        print(len(os.listdir("/proc/self/fd")), flush=True)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def limited() -> Iterator["subprocess.Popen[str]"]:
    """A server whose process may have 512 descriptors."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, "512", json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def mute(address: str, count: int) -> list[socket.socket]:
    host, port = address.rsplit(":", 1)
    return [socket.create_connection((host, int(port)), timeout=5) for _ in range(count)]


def is_serving(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5, wait_for_ready=True)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def open_files(process: "subprocess.Popen[str]") -> int:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return int(process.stdout.readline())


@pytest.mark.slow
def test_a_flood_of_one_port_starves_neither_the_other_nor_files(
    limited: "subprocess.Popen[str]",
) -> None:
    assert limited.stdout is not None
    trunk, health = json.loads(limited.stdout.readline())
    held = mute(trunk, 700)
    assert is_serving(health)
    assert open_files(limited) < 512 - 64
    for connection in held:
        connection.close()
    held = mute(health, 700)
    with GrpcTransport(trunk, spec()) as transport:
        assert transport.forward(forward(0)).result(20).shape == (2, 4, 8)
    assert open_files(limited) < 512 - 64
    for connection in held:
        connection.close()


def test_the_bounds_leave_descriptors_to_the_process() -> None:
    bounds = connection_bounds()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= min(WANTED, hard)
    assert 0 < bounds.health < bounds.trunk < bounds.health + bounds.trunk < soft
