"""PEM: certificates and keys read from files and messages, with errors that name the source.

What is read here is read again by gRPC's own TLS library, which finds a block only where a line
begins with its mark, and says nothing of what it does not find. So that is checked, too.
"""

import re

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from flower_split.errors import ConfigError
from flower_split.user_folders import expanded

MAX_PEM_BYTES = 1 << 16
"""Bound of PEM text that comes in a message."""
_MAX_FILE_BYTES = 1 << 22  # a system's whole trust store has some 200 KB

_MARK = re.compile(rb"-----(?:BEGIN|END) ([A-Z0-9 ]+)")
_WHOLE_MARK = re.compile(rb"-----(?:BEGIN|END) [A-Z0-9 ]+-----")
_CERTIFICATE, _KEY = b"CERTIFICATE", b"PRIVATE KEY"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SEQUENCE = b"\x30"  # with which DER begins
_VERSION_3 = b"\x02\x01\x03"  # with which a PKCS #12 file goes on

_INSTEAD = {
    b"CERTIFICATE REQUEST": "a request: name the certificate that the CA made of it",
    b"NEW CERTIFICATE REQUEST": "a request: name the certificate that the CA made of it",
    b"TRUSTED CERTIFICATE": "OpenSSL's own kind: openssl x509 -in OLD -out NEW",
    b"PKCS7": "PKCS #7: openssl pkcs7 -print_certs -in OLD -out NEW",
    b"OPENSSH PRIVATE KEY": "OpenSSH's own kind: ssh-keygen -p -m PKCS8 -f KEY",
    b"PUBLIC KEY": "a public key",
    b"PRIVATE KEY": "a private key",
    b"RSA PRIVATE KEY": "a private key",
    b"EC PRIVATE KEY": "a private key",
    b"CERTIFICATE": "a certificate",
}
"""What a file has in the place of what is wanted, by its mark."""


def read_pem(path: str, what: str) -> bytes:
    """The bytes of a PEM file.

    Args:
        path: The file.
        what: What errors call it, such as the setting that names it.

    Raises:
        ConfigError: it is missing, not readable, empty, or larger than any PEM file.
    """
    try:
        with expanded(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{what}: cannot read {path!r}: {error.strerror or type(error).__name__}. Name an "
            "existing PEM file that this process may read"
        ) from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"{what}: {path!r} has more than {_MAX_FILE_BYTES} bytes: no PEM file")
    if not data.strip():
        raise ConfigError(f"{what}: {path!r} is empty: name a PEM file, or leave the setting out")
    return data


def parse_certificates(data: bytes, what: str) -> list[x509.Certificate]:
    """The certificates of PEM `data`, at least one.

    Raises:
        ConfigError: there is none, one is malformed, or gRPC would not find one.
    """
    _check_marks(data, _CERTIFICATE, what)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        number = data.count(b"-----BEGIN CERTIFICATE-----")
        why = f" One of the {number} in it is damaged or not whole" if number else _instead(data)
        raise ConfigError(
            f"{what}: no certificate in PEM form, which begins with -----BEGIN CERTIFICATE-----."
            f"{why}"
        ) from error


def parse_key(data: bytes, what: str) -> PrivateKeyTypes:
    """The private key of PEM `data`.

    Raises:
        ConfigError: there is none, it is malformed, gRPC would not find it, or it is protected by
            a password.
    """
    _check_marks(data, _KEY, what)
    try:
        return load_pem_private_key(data, password=None)
    except TypeError as error:
        raise ConfigError(
            f"{what}: the private key is protected by a password. Store it without one, readable "
            "by this process alone: openssl pkey -in OLD -out NEW"
        ) from error
    except Exception as error:  # the library's own classes differ by what is wrong
        known = re.search(rb"^-----BEGIN (?:RSA |EC )?PRIVATE KEY-----", data, re.MULTILINE)
        why = " The one in it is damaged, or of an unknown kind" if known else _instead(data)
        raise ConfigError(
            f"{what}: no private key in PEM form, which begins with -----BEGIN PRIVATE KEY-----."
            f"{why}"
        ) from error


def _check_marks(data: bytes, kind: bytes, what: str) -> None:
    """Raise `ConfigError` where a mark of `kind` does not stand in a line of its own."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{what}: the file is UTF-16 text: save it as ASCII")
    if b"\0" in data and _MARK.search(data):
        raise ConfigError(f"{what}: the file has null characters in it: save it as ASCII text")
    for number, line in enumerate(data.split(b"\n"), start=1):
        found = _MARK.search(line)
        if found is None or not found[1].endswith(kind):
            continue
        if line.startswith(_BYTE_ORDER_MARK):
            raise ConfigError(
                f"{what}: line {number} begins with a byte order mark, behind which gRPC's TLS "
                "finds nothing: save the file without one (as ASCII, or UTF-8 without BOM)"
            )
        if b"\r" in line.rstrip():
            raise ConfigError(
                f"{what}: its lines end in CR alone, as gRPC's TLS reads none: save the file with "
                "line ends of Unix"
            )
        if not _WHOLE_MARK.fullmatch(line.rstrip()):
            raise ConfigError(
                f"{what}: line {number} must be the mark -----{found[0][5:].decode('ascii')}----- "
                "and nothing before or after it, or gRPC's TLS does not find it"
            )


def _instead(data: bytes) -> str:
    """What is there in the place of what is wanted, as a sentence of its own."""
    for found in _MARK.finditer(data):
        if found[1] in _INSTEAD:
            return f" It has {_INSTEAD[found[1]]}"
    if not data.startswith(_SEQUENCE):
        return ""
    if _VERSION_3 in data[:8]:
        return " It is PKCS #12: openssl pkcs12 -in OLD -nodes -out NEW"
    return " It is DER: openssl x509 (or pkey) -inform DER -in OLD -out NEW"
