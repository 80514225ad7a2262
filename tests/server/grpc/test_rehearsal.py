"""Before a port is opened, gRPC's own TLS has had its say."""

import asyncio
import socket

import pytest
from affine_backend import AffineBackend
from certificates import DAY
from hosting import nothing_left
from identities import GOOD, REHEARSED, TAKEN, Identity, certificate, curve, grpc_takes, pem

from flower_split.errors import ConfigError
from flower_split.server.grpc import rehearsal
from flower_split.server.grpc.server import TrunkServer
from flower_split.tls import ServerTls


def tls_of(identity: Identity, *, ca: bool = True) -> ServerTls:
    return ServerTls(
        certificate=identity.certificate,
        private_key=identity.key,
        ca=identity.ca if ca else b"",
        source="given",
    )


@pytest.mark.parametrize("name", REHEARSED)
def test_what_only_grpc_finds_is_told_in_its_words(name: str) -> None:
    make, reason = REHEARSED[name]
    identity = make()
    assert not grpc_takes(identity)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = TrunkServer(AffineBackend(), f"127.0.0.1:{port}", tls=tls_of(identity))
    with nothing_left(), pytest.raises(ConfigError, match=f"^given: no silo can.*{reason}"):
        server.start()
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


@pytest.mark.parametrize("name", ["P-256", "RSA 2048", "its own CA", "a chain"])
@pytest.mark.parametrize("told", [True, False])
def test_what_silos_can_connect_to_passes(name: str, told: bool) -> None:
    tls = tls_of(TAKEN[name](), ca=told)
    for host in ("localhost", "127.0.0.1", "::1"):
        asyncio.run(rehearsal.rehearse(tls, host))


def test_what_is_of_no_use_in_a_chain_does_no_harm() -> None:
    old = pem(certificate(curve(), called="old", start=-9 * DAY, end=-DAY))
    given = Identity(GOOD.certificate + old, GOOD.key, b"")
    asyncio.run(rehearsal.rehearse(tls_of(given, ca=False), "localhost"))


def test_another_host_is_found() -> None:
    with pytest.raises(ConfigError, match="Hostname"):
        asyncio.run(rehearsal.rehearse(tls_of(GOOD), "elsewhere"))


def test_a_proxy_is_of_no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    asyncio.run(rehearsal.rehearse(tls_of(GOOD), "localhost"))


def test_where_there_can_be_no_socket_there_is_no_rehearsal(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path_factory.mktemp("x" * 100)
    monkeypatch.setattr("tempfile.tempdir", str(long))
    asyncio.run(rehearsal.rehearse(tls_of(GOOD), "elsewhere"))
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    asyncio.run(rehearsal.rehearse(tls_of(GOOD), "elsewhere"))
