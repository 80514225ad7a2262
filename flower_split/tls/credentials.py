"""Credentials: what each end of the trunk's channel needs for TLS, as PEM bytes.

Private keys are in no repr, and nothing here is written to disk.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.serialization import Encoding

from flower_split.errors import ConfigError
from flower_split.tls.checks import (
    check_chain,
    check_host,
    check_key,
    check_roots,
    check_validity,
)
from flower_split.tls.ephemeral import make_identity
from flower_split.tls.pem import parse_certificates, parse_key, read_pem
from flower_split.tls.usable import CLIENT, SERVER, check_usable

# Where systems keep their roots, for a Python whose own default does not exist.
_ROOT_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """The trunk's certificate, and whom it believes.

    Raises:
        ConfigError: something is not PEM, expired, or does not belong together.
    """

    certificate: bytes = field(repr=False)
    """The trunk's certificate, then intermediate ones."""
    private_key: bytes = field(repr=False)
    ca: bytes = field(default=b"", repr=False)
    """The CA that silos are told to trust; empty for their own roots."""
    client_ca: bytes = field(default=b"", repr=False)
    """The CA of the silos' certificates, which are then demanded; empty demands none."""
    source: str = "the trunk's TLS"
    """What errors call it."""

    def __post_init__(self) -> None:
        chain = parse_certificates(self.certificate, f"{self.source}: certificate")
        key = parse_key(self.private_key, f"{self.source}: private key")
        check_key(chain, key, self.source)
        check_usable(chain[0], key, self.private_key, self.source, SERVER)
        check_validity(chain[0], self.source)
        if self.ca:
            roots = parse_certificates(self.ca, f"{self.source}: CA")
            check_chain(chain, roots, f"{self.source}: CA")
        else:
            check_chain(chain, None, self.source)
        if self.client_ca:
            what = f"{self.source}: CA of the clients"
            check_roots(parse_certificates(self.client_ca, what), what)

    @classmethod
    def ephemeral(cls, *hosts: str, client_ca: bytes = b"") -> Self:
        """A new certificate for `hosts` and loopback, by a CA that signs nothing else.

        Raises:
            ConfigError: a host is no name that a certificate could have.
        """
        certificate, key, ca = make_identity((*hosts, *_LOOPBACK))
        return cls(certificate=certificate, private_key=key, ca=ca, client_ca=client_ca)

    @classmethod
    def from_files(
        cls, certificate: str, private_key: str, *, ca: str = "", client_ca: str = ""
    ) -> Self:
        """The operator's own, from PEM files.

        Raises:
            ConfigError: with the file that is missing, unreadable, malformed or does not fit.
        """
        return cls(
            certificate=read_pem(certificate, "the trunk's certificate"),
            private_key=read_pem(private_key, "the trunk's private key"),
            ca=read_pem(ca, "the CA of the trunk's certificate") if ca else b"",
            client_ca=read_pem(client_ca, "the CA of the silos") if client_ca else b"",
            source=", ".join(
                repr(path) for path in (certificate, private_key, ca, client_ca) if path
            ),
        )

    @property
    def trusted(self) -> bytes:
        """What silos trust, PEM: `ca`, else the trunk's own certificates, as that is not known."""
        if self.ca:
            return self.ca
        chain = parse_certificates(self.certificate, self.source)
        return b"".join(one.public_bytes(Encoding.PEM) for one in chain)

    def check_host(self, host: str) -> None:
        """Raise `ConfigError` unless the certificate stands for `host`."""
        check_host(parse_certificates(self.certificate, self.source)[0], host, self.source)


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """Which trunk a silo believes, and its own certificate if the trunk demands one.

    Raises:
        ConfigError: something is not PEM, expired, or does not belong together.
    """

    ca: bytes = field(default=b"", repr=False)
    """The CA that signed the trunk's certificate; empty for this machine's own roots."""
    certificate: bytes = field(default=b"", repr=False)
    """The silo's certificate; empty for none."""
    private_key: bytes = field(default=b"", repr=False)
    source: str = "the silo's TLS"
    """What errors call it."""

    def __post_init__(self) -> None:
        if self.ca:
            what = f"{self.source}: CA"
            check_roots(parse_certificates(self.ca, what), what)
        if bool(self.certificate) != bool(self.private_key):
            raise ConfigError(f"{self.source}: certificate and private key come together or not")
        if self.certificate:
            chain = parse_certificates(self.certificate, f"{self.source}: certificate")
            key = parse_key(self.private_key, f"{self.source}: private key")
            check_key(chain, key, self.source)
            check_usable(chain[0], key, self.private_key, self.source, CLIENT)
            check_validity(chain[0], self.source)
            check_chain(chain, None, self.source)

    @classmethod
    def from_files(cls, *, ca: str = "", certificate: str = "", private_key: str = "") -> Self:
        """From PEM files.

        Raises:
            ConfigError: with the file that is missing, unreadable, malformed or does not fit.
        """
        paths = [repr(path) for path in (ca, certificate, private_key) if path]
        return cls(
            ca=read_pem(ca, "the CA of the trunk") if ca else b"",
            certificate=read_pem(certificate, "the silo's certificate") if certificate else b"",
            private_key=read_pem(private_key, "the silo's private key") if private_key else b"",
            source=", ".join(paths) or "the silo's TLS",
        )

    @property
    def roots(self) -> bytes:
        """The certificates to trust, PEM: `ca`, else this machine's own roots.

        Raises:
            ConfigError: there is no `ca`, and this machine's roots cannot be found.
        """
        if self.ca:
            return self.ca
        for path in (ssl.get_default_verify_paths().cafile, *_ROOT_FILES):
            if path and Path(path).is_file():
                return read_pem(path, "this machine's trusted roots")
        raise ConfigError(
            "this machine's trusted roots cannot be found: name the trunk's CA in the node "
            "config's trunk-ca, or set SSL_CERT_FILE"
        )
