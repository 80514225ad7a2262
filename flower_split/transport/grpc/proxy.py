"""HTTP proxies: whether gRPC connects to an address through one, and how it does.

gRPC reads `grpc_proxy`, `https_proxy` or `http_proxy`, in lower case and the first that is set, and
makes exceptions for hosts by `no_grpc_proxy` or `no_proxy`. This says of an address what gRPC will
do, and goes the same way, so that a diagnosis meets what the connection met.
"""

import base64
import ipaddress
import os
import socket
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from flower_split.config.address import Address

_NAMES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_MOST_HEAD = 1 << 16


class ProxyError(OSError):
    """The proxy was reached, and does not connect to the address; `str` says what it answered."""


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """An HTTP proxy, and which environment variable names it."""

    variable: str
    host: str
    port: int
    """0 where the variable names none that there could be: gRPC connects to nothing then."""
    credentials: str = ""
    """`user:password`; empty for none."""

    @classmethod
    def of(cls, address: Address) -> "Proxy | None":
        """The proxy through which gRPC connects to `address`; None where it connects directly."""
        variable = next((name for name in _NAMES if name in os.environ), "")
        if not variable or address.is_loopback or _is_excepted(address.host):
            return None
        told = os.environ[variable]
        try:
            parts = urlsplit(told)
            host, port = parts.hostname, parts.port
            port = 80 if port is None else port
        except ValueError:
            host, port = told.rpartition("@")[2].rpartition("/")[2], 0
            parts = urlsplit("http://" if told[:7].lower() == "http://" else "")
        if parts.scheme != "http" or not host:
            return None  # gRPC takes no other kind, and connects directly
        user = "" if parts.username is None else unquote(parts.username)
        password = "" if parts.password is None else f":{unquote(parts.password)}"
        return cls(variable=variable, host=host, port=port, credentials=user + password)

    def connect(self, address: Address, seconds: float) -> socket.socket:
        """A connection to `address` through the proxy.

        Raises:
            ProxyError: the proxy refuses.
            OSError: the proxy cannot be reached.
        """
        if not self.port:
            raise ProxyError("it is no http://host:port")
        connection = socket.create_connection((self.host, self.port), seconds)
        try:
            request = f"CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n"
            if self.credentials:
                encoded = base64.b64encode(self.credentials.encode()).decode("ascii")
                request += f"Proxy-Authorization: Basic {encoded}\r\n"
            connection.sendall(f"{request}\r\n".encode())
            status = _head(connection).split("\r\n", 1)[0]
            words = status.split(" ", 2)
            if len(words) < 2 or not words[0].startswith("HTTP/"):
                raise ProxyError("it is no HTTP proxy")
            if not words[1].startswith("2"):
                said = "".join(c for c in " ".join(words[1:]) if c.isprintable())
                raise ProxyError(f"it answered {said[:80]}")
        except BaseException:
            connection.close()
            raise
        return connection

    def __str__(self) -> str:
        """The proxy and its variable, without what is secret."""
        place = f"{self.host}:{self.port}" if self.port else repr(self.host[:80])
        return f"the proxy {place} of ${self.variable}"


def _head(connection: socket.socket) -> str:
    """The answer up to its blank line, and nothing of what follows."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and len(head) < _MOST_HEAD:
        piece = connection.recv(1)
        if not piece:
            break
        head += piece
    return head.decode("latin-1")


def _is_excepted(host: str) -> bool:
    variable = next((name for name in _EXCEPTIONS if name in os.environ), "")
    for entry in os.environ.get(variable, "").split(","):
        entry = entry.strip()
        if entry and (_is_below(host.lower(), entry.lower()) or _is_within(host, entry)):
            return True
    return False


def _is_below(host: str, domain: str) -> bool:
    """Whether a host is of a domain, at whose dots alone names part."""
    return host == domain or host.endswith(domain if domain[0] == "." else f".{domain}")


def _is_within(host: str, network: str) -> bool:
    place, slash, bits = network.partition("/")
    if slash and bits.isascii() and bits.isdigit():  # gRPC takes more bits than there are as all
        most = 128 if ":" in place else 32
        network = f"{place}/{min(int(bits[:6]), most)}"
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
