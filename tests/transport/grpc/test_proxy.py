"""Proxies that the environment names: used as gRPC does, never to loopback, and told of."""

import grpc
import pytest
from affine_backend import AffineBackend, forward, spec
from hosting import hosting
from http_proxy import http_proxy

from flower_split.config.address import Address
from flower_split.errors import CertificateError, TrunkError, TrunkUnavailableError
from flower_split.tls import ClientTls, ServerTls
from flower_split.transport.grpc.proxy import Proxy
from flower_split.transport.grpc.transport import GrpcTransport

SECONDS = 40.0
NAMES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")
HOST = "trunk.example"
"""A host that only a proxy connects to."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def tls() -> ServerTls:
    return ServerTls.ephemeral(HOST)


def connects(address: str, tls: ClientTls | None) -> bool:
    with GrpcTransport(
        address, spec(), tls=tls, plaintext=True, connect_timeout=SECONDS
    ) as transport:
        return transport.forward(forward(0)).result(SECONDS).shape == (2, 4, 8)


def failure(address: str, tls: ClientTls | None = None) -> TrunkError:
    with pytest.raises(TrunkError) as caught:
        GrpcTransport(address, spec(), tls=tls, plaintext=True, connect_timeout=SECONDS)
    assert f"trunk at {address}" in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_loopback_goes_through_none(
    name: str, tls: ServerTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http_proxy(status="403 Forbidden") as proxy, hosting(AffineBackend(), tls=tls) as server:
        monkeypatch.setenv(name, proxy.url)
        for host in ("127.0.0.1", "localhost"):
            assert connects(f"{host}:{server.port}", ClientTls(ca=tls.ca))
    with http_proxy(status="403 Forbidden") as proxy, hosting(AffineBackend()) as server:
        monkeypatch.setenv(name, proxy.url)
        assert connects(server.address, None)
    assert proxy.requests == []


def test_a_failure_on_loopback_speaks_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    error = failure("127.0.0.1:9")
    assert "refused" in str(error) and "proxy" not in str(error)


def test_another_host_is_reached_through_the_proxy(
    tls: ServerTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hosting(AffineBackend(), tls=tls) as server, http_proxy(server.port) as proxy:
        monkeypatch.setenv("https_proxy", f"http://someone:secret@127.0.0.1:{proxy.port}")
        assert connects(f"{HOST}:{server.port}", ClientTls(ca=tls.ca))
    assert proxy.requests[0].startswith(f"CONNECT {HOST}:{server.port} HTTP/1.")


@pytest.mark.parametrize("status", ["403 Forbidden", "407 Proxy Authentication Required"])
def test_a_proxy_that_refuses_is_named(status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with http_proxy(status=status) as proxy:
        monkeypatch.setenv("http_proxy", f"http://someone:secret@127.0.0.1:{proxy.port}")
        error = failure(f"{HOST}:9443")
    assert type(error) is TrunkUnavailableError
    for said in (status, f"127.0.0.1:{proxy.port}", "$http_proxy", f"'{HOST}' in $no_proxy"):
        assert said in str(error)
    assert "secret" not in str(error)
    assert "Proxy-Authorization: Basic c29tZW9uZTpzZWNyZXQ=" in proxy.requests[-1]


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    error = failure(f"{HOST}:9443")
    assert type(error) is TrunkUnavailableError
    assert "the proxy 127.0.0.1:9 of $http_proxy cannot be reached" in str(error)


def test_what_is_wrong_behind_the_proxy_names_it_too(
    tls: ServerTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = ServerTls.ephemeral(HOST)
    with hosting(AffineBackend(), tls=tls) as server, http_proxy(server.port) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        address = f"{HOST}:{server.port}"
        error = failure(address, ClientTls(ca=stranger.ca))
        assert type(error) is CertificateError
        assert "a CA that this silo does not trust" in str(error)
        plain = failure(address)
        assert "speaks TLS" in str(plain)
    for one in (error, plain):
        assert f"goes through the proxy 127.0.0.1:{proxy.port} of $http_proxy" in str(one)


def test_an_exception_is_connected_to_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_proxy(status="403 Forbidden") as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "trunk.invalid")
        error = failure("trunk.invalid:9443")
    assert "proxy" not in str(error)
    assert proxy.requests == []


SETTINGS: dict[str, dict[str, str]] = {
    "none": {},
    "http": {"http_proxy": "{}"},
    "https": {"https_proxy": "{}"},
    "grpc": {"grpc_proxy": "{}"},
    "upper case": {"HTTP_PROXY": "{}", "HTTPS_PROXY": "{}"},
    "the first counts": {"grpc_proxy": "http://127.0.0.1:9", "http_proxy": "{}"},
    "an empty one": {"grpc_proxy": "", "http_proxy": "{}"},
    "an empty https": {"https_proxy": "", "http_proxy": "{}"},
    "another scheme": {"https_proxy": "https://127.0.0.1:9", "http_proxy": "{}"},
    "no scheme": {"http_proxy": "127.0.0.1:9"},
    "a path": {"http_proxy": "{}/"},
    "a user": {"http_proxy": "http://a:b@127.0.0.1:9"},
    "the host": {"http_proxy": "{}", "no_proxy": "10.255.0.1"},
    "the host among others": {"http_proxy": "{}", "no_proxy": "a.b, 10.255.0.1 ,c"},
    "a network": {"http_proxy": "{}", "no_proxy": "10.0.0.0/8"},
    "another network": {"http_proxy": "{}", "no_proxy": "10.0.0.0/16"},
    "an end": {"http_proxy": "{}", "no_proxy": "255.0.1"},
    "a star": {"http_proxy": "{}", "no_proxy": "*"},
    "for gRPC": {"http_proxy": "{}", "no_grpc_proxy": "10.255.0.1"},
    "for gRPC first": {"http_proxy": "{}", "no_grpc_proxy": "x", "no_proxy": "10.255.0.1"},
    "an empty one for gRPC": {"http_proxy": "{}", "no_grpc_proxy": "", "no_proxy": "10.255.0.1"},
    "upper case of the host": {"http_proxy": "{}", "NO_PROXY": "10.255.0.1"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_grpc_goes_where_it_is_expected_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with http_proxy(status="403 Forbidden") as proxy:
        for variable, value in SETTINGS[name].items():
            monkeypatch.setenv(variable, value.replace("{}", proxy.url))
        expected = Proxy.of(Address("10.255.0.1", 9443))
        with (
            grpc.insecure_channel("10.255.0.1:9443") as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            channel.unary_unary("/a/B")(b"", timeout=1.0)
        dead = expected is not None and expected.port == 9
        used = bool(proxy.requests) or ("127.0.0.1:9" in caught.value.details() and dead)
    assert used is (expected is not None)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999", "http://u:s3cret@127.0.0.1:abc", "http://[::1", "http://h:0"]
)
def test_a_proxy_that_cannot_be_one_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC goes by it all the same, and connects to nothing."""
    monkeypatch.setenv("http_proxy", url)
    error = str(failure(f"{HOST}:9443"))
    assert "of $http_proxy does not connect to it: it is no http://host:port" in error
    assert "s3cret" not in error


@pytest.mark.parametrize(
    ("host", "entry", "excepted"),
    [
        ("vm", "m", False),
        ("a.vm", "vm", True),
        ("a.vm", ".vm", True),
        ("a.VM", "A.vm", True),
        ("192.0.2.2", "2.0.2.2", False),
        ("192.0.2.2", "0.2.2", True),
        ("192.0.2.2", "192.0.2.0/24", True),
        ("192.0.2.2", "192.0.2.2/33", True),
        ("192.0.2.2", "192.0.2.3/33", False),
    ],
)
def test_exceptions_are_made_for_what_grpc_makes_them_for(
    host: str, entry: str, excepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", f"x, {entry} ,y")
    assert (Proxy.of(Address(host, 9443)) is None) is excepted
