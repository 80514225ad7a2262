"""Provisioning: the files of a deployment's CA, its server and its silos, made once and kept.

Private keys are readable by their owner only. Nothing is overwritten: to renew a certificate, the
old files are moved away first. All keys are on curve P-384, as SuperNodes' have to be.
"""

import datetime
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from flower_split.errors import ConfigError
from flower_split.tls.names import subject_names
from flower_split.tls.usage import key_usage

CA_DAYS = 1825
LEAF_DAYS = 365
CLOCK_SKEW = datetime.timedelta(hours=1)
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""By which processes of the server's own machine connect."""


def make_ca(folder: Path) -> list[Path]:
    """Write `ca.crt` and `ca.key`: an authority of the deployment's own, for servers and silos.

    Returns:
        The files, as all functions here.

    Raises:
        FileExistsError: one of them is there.
        OSError: they cannot be written.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("flower-split deployment CA")
    certificate = (
        _certificate(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage("key_cert_sign", "crl_sign"), critical=True)
        .sign(key, hashes.SHA384())
    )
    return _write(folder, {"ca.key": _pem(key), "ca.crt": certificate.public_bytes(Encoding.PEM)})


def make_server(folder: Path, hosts: Sequence[str]) -> list[Path]:
    """Write `server.crt` and `server.key`, signed by the CA in `folder`.

    Args:
        folder: With `ca.crt` and `ca.key`.
        hosts: Names and addresses that silos connect to; the machine's loopback names are added.

    Raises:
        ConfigError: a host is no name that a certificate could have, or the CA is none of ours.
        FileExistsError: one of the files is there.
        OSError: files cannot be read or written.
    """
    try:
        names = subject_names(tuple(dict.fromkeys([*hosts, *LOCAL_NAMES])))
    except ValueError as error:
        raise ConfigError(
            f"no certificate can be made for the hosts {', '.join(hosts)}: write a host's name in "
            "ASCII (punycode)"
        ) from error
    return _leaf(folder, "server", hosts[0], ExtendedKeyUsageOID.SERVER_AUTH, names)


def make_silo(folder: Path, name: str) -> list[Path]:
    """Write a SuperNode's key pair, `NAME.key` and `NAME.pub`, in OpenSSH's format.

    Raises:
        FileExistsError: one of the files is there.
        OSError: they cannot be written.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    files = {f"{name}.key": private, f"{name}.pub": public + f" {name}\n".encode()}
    return _write(folder, files)


def make_silo_certificate(folder: Path, name: str) -> list[Path]:
    """Write `NAME-trunk.crt` and `NAME-trunk.key`, by which the trunk knows the silo.

    Args:
        folder: With `ca.crt` and `ca.key`.
        name: The silo's.

    Raises:
        ConfigError: the CA is none of ours.
        FileExistsError: one of the files is there.
        OSError: files cannot be read or written.
    """
    return _leaf(folder, f"{name}-trunk", name, ExtendedKeyUsageOID.CLIENT_AUTH)


def make_strategy(folder: Path, name: str) -> list[Path]:
    """Write `NAME-strategy.crt` and `NAME-strategy.key`, by which a trunk service knows a strategy.

    Args, returns and raises as `make_silo_certificate`.
    """
    return _leaf(folder, f"{name}-strategy", name, ExtendedKeyUsageOID.CLIENT_AUTH)


def _leaf(
    folder: Path,
    file: str,
    common: str,
    purpose: ObjectIdentifier,
    names: x509.SubjectAlternativeName | None = None,
) -> list[Path]:
    ca = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    ca_key = load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{folder / 'ca.key'} is not on an elliptic curve: make a CA anew")
    key = ec.generate_private_key(ec.SECP384R1())
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = (
        _certificate(_name(common), ca.subject, key.public_key(), LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(authority, critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    signed = builder.sign(ca_key, hashes.SHA384()).public_bytes(Encoding.PEM)
    return _write(folder, {f"{file}.key": _pem(key), f"{file}.crt": signed})


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """New files, those that end in `.key` for their owner only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    for name, content in files.items():
        handle = os.open(folder / name, flags, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if not name.endswith(".key"):
                os.fchmod(handle, 0o644)
    return [folder / name for name in files]
