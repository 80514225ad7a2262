"""Checks of an operator's certificates before anything listens with them."""

import datetime
import logging

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flower_split.errors import ConfigError
from flower_split.tls.names import certificate_names, covers

logger = logging.getLogger(__name__)

SOON = datetime.timedelta(hours=24)
"""A certificate that expires within this time gets a warning."""


def check_key(certificate: x509.Certificate, key: PrivateKeyTypes, what: str) -> None:
    """Raise `ConfigError` unless `key` is the certificate's."""
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if certificate.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        raise ConfigError(
            f"{what}: the private key does not match the certificate: name the key that the "
            "certificate was requested with"
        )


def check_validity(
    certificate: x509.Certificate, what: str, now: datetime.datetime | None = None
) -> None:
    """Raise `ConfigError` outside the certificate's time; log a warning close to its end."""
    now = now or datetime.datetime.now(datetime.UTC)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= end:
        raise ConfigError(f"{what}: the certificate expired on {end:%Y-%m-%d %H:%M} UTC: renew it")
    if now < start:
        raise ConfigError(
            f"{what}: the certificate is valid from {start:%Y-%m-%d %H:%M} UTC only, and the clock "
            f"says {now:%Y-%m-%d %H:%M}: check this machine's clock, or the certificate"
        )
    if end - now < SOON:
        logger.warning(
            "%s: the certificate expires on %s UTC, within %d h: silos that connect later will "
            "refuse it. Renew it before a long run",
            what,
            f"{end:%Y-%m-%d %H:%M}",
            SOON.total_seconds() // 3600,
        )


def check_host(certificate: x509.Certificate, host: str, what: str) -> None:
    """Raise `ConfigError` unless the certificate stands for `host`, to which silos connect."""
    if not covers(certificate, host):
        names = ", ".join(certificate_names(certificate)[:20]) or "no host at all"
        raise ConfigError(
            f"{what}: the certificate is for {names}, not for {host!r}, to which silos connect: "
            "set trunk.advertise to a host that it names, or get a certificate for this host "
            "(as a subject alternative name; a common name does not count)"
        )


def check_chain(chain: list[x509.Certificate], roots: list[x509.Certificate], what: str) -> None:
    """Raise `ConfigError` unless one of `roots` signed the chain that begins with its first."""
    current, rest = chain[0], chain[1:]
    while not any(root == current or _signed(current, root) for root in roots):
        issuer = next((other for other in rest if _signed(current, other)), None)
        if issuer is None:
            raise ConfigError(
                f"{what}: no CA in it signed the certificate, whose issuer is "
                f"{chain[0].issuer.rfc4514_string()!r}: name that CA's file, and append "
                "intermediate certificates to the certificate's own file"
            )
        rest = [other for other in rest if other != issuer]
        current = issuer


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
