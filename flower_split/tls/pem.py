"""PEM: certificates and keys read from files and messages, with errors that name the source."""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from flower_split.errors import ConfigError

MAX_PEM_BYTES = 1 << 16
"""Bound of PEM text that comes in a message."""
_MAX_FILE_BYTES = 1 << 22  # a system's whole trust store has some 200 KB
_KEY_LABEL = b"PRIVATE KEY-----"


def read_pem(path: str, what: str) -> bytes:
    """The bytes of a PEM file.

    Args:
        path: The file.
        what: What errors call it, such as the setting that names it.

    Raises:
        ConfigError: it is missing, not readable, empty, or larger than any PEM file.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
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
        ConfigError: there is none, or one is malformed.
    """
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        found = " It has a private key" if _KEY_LABEL in data else ""
        raise ConfigError(
            f"{what}: no certificate in PEM form, which begins with -----BEGIN CERTIFICATE-----."
            f"{found}"
        ) from error


def parse_key(data: bytes, what: str) -> PrivateKeyTypes:
    """The private key of PEM `data`.

    Raises:
        ConfigError: there is none, it is malformed, or it is protected by a password.
    """
    try:
        return load_pem_private_key(data, password=None)
    except TypeError as error:
        raise ConfigError(
            f"{what}: the private key is protected by a password. Store it without one, readable "
            "by this process alone: openssl pkey -in OLD -out NEW"
        ) from error
    except Exception as error:  # the library's own classes differ by what is wrong
        raise ConfigError(
            f"{what}: no private key in PEM form, which begins with -----BEGIN PRIVATE KEY-----"
        ) from error
