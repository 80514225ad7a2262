"""The ephemeral identity: a CA and a server certificate made for one process and never stored.

The CA's key is dropped as soon as it has signed, so nobody can make a second certificate.
"""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flower_split.errors import ConfigError
from flower_split.tls.names import subject_names
from flower_split.tls.usage import key_usage

CLOCK_SKEW = datetime.timedelta(hours=24)
"""How much a silo's clock may be behind."""
VALIDITY = datetime.timedelta(days=30)
"""How long the identity is good: longer than a run, for a silo whose clock is ahead too."""


def make_identity(
    hosts: tuple[str, ...],
    *,
    now: datetime.datetime | None = None,
    validity: datetime.timedelta = VALIDITY,
) -> tuple[bytes, bytes, bytes]:
    """Certificate, private key and CA certificate for `hosts`, all PEM, on curve P-256.

    Args:
        hosts: DNS names and IP addresses, without brackets.
        now: The time of making; None takes the clock's.
        validity: Time after `now` at which both certificates expire.

    Raises:
        ConfigError: a host is no name that a certificate could have.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    times = now - CLOCK_SKEW, now + validity
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name, name = _name("flower_split ephemeral CA"), _name("flower_split trunk")
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    try:
        names = subject_names(hosts)
    except ValueError as error:
        raise ConfigError(
            f"no certificate can be made for the hosts {', '.join(hosts)}: write a host's name in "
            "ASCII (punycode)"
        ) from error
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), times)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage("key_cert_sign"), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    certificate = (
        _builder(name, ca_name, key.public_key(), times)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private, ca.public_bytes(Encoding.PEM)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    times: tuple[datetime.datetime, datetime.datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(times[0])
        .not_valid_after(times[1])
    )
