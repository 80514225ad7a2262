"""Certificates and keys of a deployment: a CA, the server's certificate, the silos' key pairs.

::

    python keys.py ca FOLDER                            # ca.crt, ca.key
    python keys.py server FOLDER HOST [HOST …]          # server.crt, server.key, signed by the CA
    python keys.py silo FOLDER NAME                     # NAME.key, NAME.pub

Private keys are readable by their owner only and are never printed. Nothing is overwritten: to
renew a certificate, move the old files away first.
"""

import argparse
import datetime
import ipaddress
import os
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 1825
SERVER_DAYS = 365
CLOCK_SKEW = datetime.timedelta(hours=1)
# Processes of the server's own machine connect by these.
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def make_ca(folder: Path) -> None:
    """A certificate authority of the deployment's own. Its key signs servers, nothing else."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "flower-split deployment CA")])
    certificate = (
        _certificate(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write_private(folder / "ca.key", _pem(key))
    _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))


def make_server(folder: Path, hosts: list[str]) -> None:
    """The SuperLink's certificate, valid for `hosts` and for its own machine's loopback names."""
    ca = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    ca_key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{folder / 'ca.key'} is not a key that `keys.py ca` made")
    key = ec.generate_private_key(ec.SECP384R1())
    names = [_general_name(host) for host in dict.fromkeys([*hosts, *LOCAL_NAMES])]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    certificate = (
        _certificate(subject, ca.subject, key.public_key(), SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
        .sign(ca_key, hashes.SHA384())
    )
    _write_private(folder / "server.key", _pem(key))
    _write(folder / "server.crt", certificate.public_bytes(serialization.Encoding.PEM))


def make_silo(folder: Path, name: str) -> None:
    """A SuperNode's key pair, in OpenSSH's format as Flower wants it."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    _write_private(folder / f"{name}.key", private)
    _write(folder / f"{name}.pub", public + f" {name}\n".encode())


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
    )


def _usage(**granted: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: granted.get(name, False) for name in names})


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        os.fchmod(handle, mode)
    print(path)


def _write_private(path: Path, content: bytes) -> None:
    _write(path, content, mode=0o600)


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("ca", "a certificate authority"),
        ("server", "the SuperLink's certificate, signed by that authority"),
        ("silo", "a SuperNode's key pair"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("folder", type=Path, help="where the files are, or will be")
        if name == "server":
            command.add_argument("host", nargs="+", help="name or IP address that silos connect to")
        if name == "silo":
            command.add_argument("name", help="the silo's name, which names its files")
    given = parser.parse_args()
    os.umask(0o077)  # for the folders that are made
    try:
        if given.command == "ca":
            make_ca(given.folder)
        elif given.command == "server":
            make_server(given.folder, given.host)
        else:
            make_silo(given.folder, given.name)
    except FileExistsError as error:
        print(f"{error.filename} exists already: move it away to make a new one", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"keys.py {given.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
