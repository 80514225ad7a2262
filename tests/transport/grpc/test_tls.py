"""Sessions over TLS: a silo that trusts the trunk connects; every other ending says why."""

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from affine_backend import AffineBackend, forward, spec
from certificates import DAY, self_signed, unchecked
from hosting import hosting, nothing_left
from identities import curve, of

from flower_split.errors import CertificateError, ConfigError, TrunkError, TrunkUnavailableError
from flower_split.server.grpc.server import TrunkServer
from flower_split.tls import ClientTls, ServerTls
from flower_split.tls.ephemeral import make_identity
from flower_split.transport.grpc.diagnosis import diagnose
from flower_split.transport.grpc.transport import GrpcTransport

SECONDS = 40.0
"""Far more than a failure takes on a busy machine, far less than a hang."""


@pytest.fixture(scope="module")
def tls() -> ServerTls:
    return ServerTls.ephemeral()


def connects(server: TrunkServer, trust: ClientTls, address: str = "") -> bool:
    with GrpcTransport(
        address or server.address, spec(), tls=trust, connect_timeout=SECONDS
    ) as transport:
        return transport.forward(forward(0)).result(SECONDS).shape == (2, 4, 8)


def failure(address: str, trust: ClientTls | None, seconds: float = SECONDS) -> TrunkError:
    """Why no session comes about; fails when that takes longer than it may."""
    started = time.monotonic()
    with nothing_left(), pytest.raises(TrunkError) as caught:
        GrpcTransport(address, spec(), tls=trust, plaintext=True, connect_timeout=seconds)
    assert time.monotonic() - started < seconds + 10
    assert f"trunk at {address}" in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_silo_that_trusts_the_trunk_s_ca_connects(tls: ServerTls, name: str) -> None:
    with hosting(AffineBackend(), tls=tls) as server:
        assert connects(server, ClientTls(ca=tls.ca), f"{name}:{server.port}")


def test_ipv6(tls: ServerTls) -> None:
    with hosting(AffineBackend(), address="[::1]:0", tls=tls) as server:
        assert server.address == f"[::1]:{server.port}"
        assert connects(server, ClientTls(ca=tls.ca))
    with hosting(AffineBackend(), address="[::]:0", advertise="[::1]", tls=tls) as server:
        assert server.address == f"[::1]:{server.port}"
        assert connects(server, ClientTls(ca=tls.ca))


def test_a_self_signed_certificate_that_is_its_own_ca_is_trusted() -> None:
    certificate, key = self_signed()
    given = ServerTls(certificate=certificate, private_key=key, ca=certificate)
    with hosting(AffineBackend(), tls=given) as server:
        assert connects(server, ClientTls(ca=certificate))


def test_client_certificates_are_demanded(tls: ServerTls) -> None:
    mine, my_key = self_signed(("silo",))
    other, other_key = self_signed(("silo",))
    demanding = ServerTls.ephemeral(client_ca=mine)
    with hosting(AffineBackend(), tls=demanding) as server:
        trust = ClientTls(ca=demanding.ca, certificate=mine, private_key=my_key)
        assert connects(server, trust)
        missing = failure(server.address, ClientTls(ca=demanding.ca))
        assert "demands a client certificate and this silo has none" in str(missing)
        foreign = ClientTls(ca=demanding.ca, certificate=other, private_key=other_key)
        assert "does not accept this silo's" in str(failure(server.address, foreign))
        assert connects(server, trust)


def bad_identities() -> dict[str, tuple[ServerTls, bytes, str]]:
    """By name: the trunk's credentials, the CA that the silo trusts, what it says."""
    good, stranger = ServerTls.ephemeral(), ServerTls.ephemeral()
    elsewhere = make_identity(("trunk.example",))
    alone = self_signed()
    late, early = of(curve(), start=-9 * DAY, end=-DAY), of(curve(), start=DAY)
    return {
        "wrong CA": (good, stranger.ca, "signed by a CA that this silo does not trust"),
        "no CA": (good, b"", "signed by a CA that this silo does not trust"),
        "self-signed": (unchecked(*alone), good.ca, "self-signed"),
        "expired": (unchecked(late.certificate, late.key), late.ca, "expired"),
        "not yet valid": (unchecked(early.certificate, early.key), early.ca, "not valid yet"),
        "other host": (unchecked(*elsewhere), elsewhere[2], "not for the host '127.0.0.1'"),
    }


async def unrehearsed(*_: object) -> None:
    """In the place of the rehearsal, which a certificate passed before it expired."""


@pytest.mark.parametrize(
    "name", ["wrong CA", "no CA", "self-signed", "expired", "not yet valid", "other host"]
)
def test_row_17_a_certificate_that_is_not_to_be_trusted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, ca, message = bad_identities()[name]
    monkeypatch.setattr(ServerTls, "check_host", lambda self, host: None)
    monkeypatch.setattr("flower_split.server.grpc.server.rehearse", unrehearsed)
    with hosting(AffineBackend(), tls=given) as server:
        error = failure(server.address, ClientTls(ca=ca))
        assert type(error) is CertificateError
        assert message in str(error)
    assert server.num_sessions == 0


def test_row_17_a_plaintext_silo_at_a_tls_trunk(tls: ServerTls) -> None:
    with hosting(AffineBackend(), tls=tls) as server:
        error = failure(server.address, None)
        assert type(error) is CertificateError and "speaks TLS" in str(error)
        assert connects(server, ClientTls(ca=tls.ca))


def test_row_17_a_tls_silo_at_a_plaintext_trunk(tls: ServerTls) -> None:
    with hosting(AffineBackend()) as server:
        error = failure(server.address, ClientTls(ca=tls.ca))
        assert type(error) is CertificateError and "speaks no TLS" in str(error)


def resets(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


CLOSINGS: dict[str, Callable[[socket.socket], object]] = {
    "at once": lambda one: None,
    "after the hello": lambda one: one.recv(1 << 16),
    "with a reset": lambda one: (one.recv(1), resets(one)),
    "amid its own hello": lambda one: (one.recv(1 << 16), one.sendall(b"\x16\x03\x03\x00\x7a\x02")),
}


@contextmanager
def closing(how: Callable[[socket.socket], object]) -> Iterator[str]:
    """Something that accepts connections and closes them, having done `how`."""
    with socket.create_server(("127.0.0.1", 0)) as listens:

        def close_all() -> None:
            with contextlib.suppress(OSError):
                while True:
                    one, _ = listens.accept()
                    with one, contextlib.suppress(OSError):
                        how(one)

        thread = threading.Thread(target=close_all, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listens.getsockname()[1]}"
        listens.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.mark.parametrize("how", CLOSINGS)
def test_a_peer_that_closes_during_the_handshake_has_no_wrong_certificate(
    tls: ServerTls, how: str
) -> None:
    with closing(CLOSINGS[how]) as address:
        error = diagnose(address, ClientTls(ca=tls.ca), SECONDS)
    assert type(error) is TrunkUnavailableError
    assert f"trunk at {address}: closed the connection during the TLS handshake" in str(error)


@contextmanager
def listener(greeting: bytes = b"") -> Iterator[str]:
    """Something that accepts connections and never speaks as a trunk."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield f"127.0.0.1:{silent.getsockname()[1]}"


@pytest.mark.medium
def test_a_tls_silo_at_something_that_says_nothing(tls: ServerTls) -> None:
    with listener() as address:
        error = failure(address, ClientTls(ca=tls.ca), seconds=4.0)
    assert type(error) is TrunkUnavailableError
    assert re.search("no trunk|did not answer", str(error))


def test_an_address_that_refuses(tls: ServerTls) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = failure(f"127.0.0.1:{unused.getsockname()[1]}", ClientTls(ca=tls.ca))
    assert type(error) is TrunkUnavailableError and "refused" in str(error)


def test_a_name_that_cannot_be_resolved(tls: ServerTls) -> None:
    error = failure("no-such-host.invalid:9443", ClientTls(ca=tls.ca))
    assert type(error) is TrunkUnavailableError
    assert re.search("cannot be resolved|not resolved in time", str(error))


@pytest.mark.medium
def test_an_address_that_does_not_answer(tls: ServerTls) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(4):  # more than the queue takes: later ones get no answer at all
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(full.getsockname())
            waiting.append(one)
        error = failure(f"127.0.0.1:{full.getsockname()[1]}", ClientTls(ca=tls.ca), seconds=4.0)
        for one in waiting:
            one.close()
    assert type(error) is TrunkUnavailableError
    assert re.search("no answer|did not answer|no trunk", str(error))


def test_row_17_other_machines_need_tls(tls: ServerTls, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0:0 can be reached.*needs TLS"):
        TrunkServer(AffineBackend(), "0.0.0.0:0")
    with hosting(AffineBackend(), address="0.0.0.0:0", plaintext=True):
        assert "NOT encrypted" in caplog.text
    caplog.clear()
    with hosting(AffineBackend(), address="0.0.0.0:0", advertise="localhost:0", tls=tls) as server:
        assert server.address == f"localhost:{server.port}"
        assert "NOT encrypted" not in caplog.text
        assert connects(server, ClientTls(ca=tls.ca))


def test_the_certificate_must_be_for_the_advertised_host(tls: ServerTls) -> None:
    with pytest.raises(ConfigError, match=r"not for 'trunk\.example', to which silos connect"):
        TrunkServer(AffineBackend(), tls=tls, advertise="trunk.example:443")
    TrunkServer(
        AffineBackend(), tls=ServerTls.ephemeral("trunk.example"), advertise="trunk.example:443"
    )
