"""The peer of a stream: the certificate with which it came through the TLS handshake."""

import hashlib
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from flower_split.transport.messages import Ticket

_CERTIFICATE = "x509_pem_cert"


class Peer(Protocol):
    """What gRPC tells of who is at the other end of a call."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What the handshake found out, by gRPC's own names; empty without TLS."""
        ...


def shown_by(peer: Peer, ticket: Ticket | None) -> Ticket | None:
    """`ticket` with the thumbprint of the certificate of the peer that shows it."""
    return None if ticket is None else replace(ticket, certificate=thumbprint(peer))


def thumbprint(peer: Peer) -> str:
    """SHA-256 of the peer's certificate, hexadecimal; empty where it has shown none."""
    for pem in peer.auth_context().get(_CERTIFICATE, ()):
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))).hexdigest()
    return ""
