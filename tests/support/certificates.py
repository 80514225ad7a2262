"""Certificates as operators have them: good ones, and each kind of bad one."""

import datetime
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from flower_split.tls import ServerTls
from flower_split.tls.ephemeral import make_identity
from flower_split.tls.names import subject_names

DAY = datetime.timedelta(days=1)
HOSTS = ("127.0.0.1", "::1", "localhost")


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def self_signed(hosts: tuple[str, ...] = HOSTS) -> tuple[bytes, bytes]:
    """Certificate and key; no CA, and of the same name as every other one."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trunk")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - DAY)
        .not_valid_after(now() + 3 * DAY)
        .add_extension(subject_names(hosts), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private


def signed(*names: str) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """A CA, and a certificate and key of every name by it."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "silos")])

    def made(name: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_ca: bool) -> bytes:
        built = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - DAY)
            .not_valid_after(now() + 3 * DAY)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        return built.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM)

    identities = []
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        identities.append((made(subject, key, is_ca=False), private))
    return made(ca_name, ca_key, is_ca=True), identities


def unchecked(certificate: bytes, private_key: bytes, ca: bytes = b"") -> ServerTls:
    """Credentials that `ServerTls` would refuse, as when a certificate expires meanwhile."""
    tls = replace(ServerTls.ephemeral())
    for name, value in (("certificate", certificate), ("private_key", private_key), ("ca", ca)):
        object.__setattr__(tls, name, value)
    return tls


def expired(hosts: tuple[str, ...] = HOSTS) -> tuple[bytes, bytes, bytes]:
    return make_identity(hosts, now=now() - 60 * DAY)


def not_yet_valid(hosts: tuple[str, ...] = HOSTS) -> tuple[bytes, bytes, bytes]:
    return make_identity(hosts, now=now() + 20 * DAY)


def write(folder: Path, **contents: bytes) -> dict[str, str]:
    """The paths of new files, by name."""
    paths = {}
    for name, content in contents.items():
        path = folder / f"{name}.pem"
        path.write_bytes(content)
        paths[name] = str(path)
    return paths
