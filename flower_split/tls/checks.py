"""Checks of an operator's certificates before anything listens with them."""

import datetime
import logging

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flower_split.errors import ConfigError
from flower_split.tls.names import certificate_names, covers

logger = logging.getLogger(__name__)

SOON = datetime.timedelta(hours=24)
"""A certificate that expires within this time gets a warning."""


def check_key(chain: list[x509.Certificate], key: PrivateKeyTypes, what: str) -> None:
    """Raise `ConfigError` unless `key` is that of the first certificate of `chain`."""
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    own = key.public_key().public_bytes(*form)
    places = [n for n, one in enumerate(chain) if one.public_key().public_bytes(*form) == own]
    if not places:
        raise ConfigError(
            f"{what}: the private key does not match the certificate: name the key that the "
            "certificate was requested with"
        )
    if 0 not in places:
        raise ConfigError(
            f"{what}: the private key is that of certificate {places[0] + 1} of the file, which "
            "must be the first one, before those that signed it: put them in this order"
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


def check_chain(
    chain: list[x509.Certificate], roots: list[x509.Certificate] | None, what: str
) -> None:
    """Check what leads from a certificate to a CA, as silos do.

    Args:
        chain: The certificate, then intermediate ones in any order.
        roots: The CA's; None where it is not known, and the chain is checked as far as it goes.
        what: What errors call it.

    Raises:
        ConfigError: none of `roots` signed the chain, or one on the way is not valid now or may
            sign no others.
    """
    current, rest = chain[0], chain[1:]
    while True:
        _note_signature(current, what)
        anchors = [root for root in roots or () if root == current or _signed(current, root)]
        if anchors:
            valid = [root for root in anchors if _is_valid(root)]
            check_validity((valid or anchors)[0], f"{what}: {_subject(anchors[0])}")
            return
        issuer = next((other for other in rest if _signed(current, other)), None)
        if issuer is None and roots is None:
            return
        if issuer is None:
            raise ConfigError(
                f"{what}: no CA in it signed the certificate, whose issuer is "
                f"{chain[0].issuer.rfc4514_string()!r}: name that CA's file, and append "
                "intermediate certificates to the certificate's own file"
            )
        check_validity(issuer, f"{what}: {_subject(issuer)}")
        if not _may_sign(issuer):
            raise ConfigError(
                f"{what}: {_subject(issuer)} may sign no others, as it is no CA by its basic "
                "constraints: get the intermediate certificate anew, as a CA"
            )
        rest = [other for other in rest if other != issuer]
        current = issuer


def check_roots(roots: list[x509.Certificate], what: str) -> None:
    """Raise `ConfigError` where none of the CAs to trust is valid now."""
    if not any(map(_is_valid, roots)):
        check_validity(roots[0], f"{what}: {_subject(roots[0])}")


def _subject(certificate: x509.Certificate) -> str:
    return repr(certificate.subject.rfc4514_string())


def _is_valid(certificate: x509.Certificate) -> bool:
    now = datetime.datetime.now(datetime.UTC)
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (x509.ExtensionNotFound, ValueError):
        return False
    return found.value.ca


def _note_signature(certificate: x509.Certificate, what: str) -> None:
    """Say what is to be thought of the hash that `certificate` was signed with."""
    hashed = _hash_of(certificate)
    if hashed == "md5":
        raise ConfigError(
            f"{what}: {_subject(certificate)} has a certificate that is signed with MD5, which "
            "gRPC's TLS does not take: have it signed with SHA-256"
        )
    if hashed == "sha1":
        logger.warning(
            "%s: %s has a certificate that is signed with SHA-1: renew it",
            what,
            _subject(certificate),
        )


def _hash_of(certificate: x509.Certificate) -> str:
    try:
        found = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return ""
    return "" if found is None else found.name


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if _hash_of(certificate) == "sha1":
        # Not verified by the library that is used here, and by the trunk's and the silos' own.
        return certificate.issuer == issuer.subject
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
