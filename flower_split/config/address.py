"""Addresses: `host:port` texts, with IPv6 hosts in brackets, read and written in one place."""

import ipaddress
import socket
from dataclasses import dataclass

from flower_split.errors import ConfigError

_LOOPBACK_NAMES = ("localhost", "ip6-localhost", "ip6-loopback")


@dataclass(frozen=True)
class Address:
    """A host, without brackets, and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, what: str = "an address", port: int | None = None) -> "Address":
        """The address that `text` gives as `host:port` or `[IPv6]:port`.

        Args:
            text: The address.
            what: What errors call it.
            port: The port of a text without one; None demands one.

        Raises:
            ConfigError: `text` is no such address.
        """
        problem = ConfigError(
            f"{what} must be host:port with a port up to 65535, and an IPv6 host in brackets as "
            f"in [::1]:9443, not {text!r}"
        )
        bracket, end = text.startswith("["), text.find("]")
        host, rest = (text[1:end], text[end + 1 :]) if bracket else (text, "")
        if not bracket and ":" in text:
            host, rest = text.split(":", 1)[0], ":" + text.split(":", 1)[1]
        digits = rest[1:]
        if rest and (rest[0] != ":" or not (digits.isascii() and digits.isdecimal())):
            raise problem
        if not rest and port is None:
            raise problem
        number = int(digits) if rest else port
        known = is_ipv6(host) if bracket else _is_name_or_ipv4(host)
        if not known or number is None or number > 65535 or len(digits) > 5:
            raise problem
        return cls(host, number)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def bare_host(host: str) -> str:
    """`host` without the brackets that an IPv6 address may have."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine's loopback, by address or by name."""
    try:
        address = ipaddress.ip_address(bare_host(host))
    except ValueError:
        return host.lower().rstrip(".") in _LOOPBACK_NAMES
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def is_any(host: str) -> bool:
    """Whether `host` stands for every address of this machine."""
    try:
        return ipaddress.ip_address(bare_host(host)).is_unspecified
    except ValueError:
        return not host


def is_ipv6(host: str) -> bool:
    """Whether `host` is an IPv6 address, without brackets."""
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def reachable_name() -> str:
    """The name by which other machines of this network know this one."""
    return socket.gethostname()


def _is_name_or_ipv4(host: str) -> bool:
    return bool(host) and host.isascii() and not any(c in host for c in "[]:/@? \t\r\n\\")
