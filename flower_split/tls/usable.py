"""What gRPC's TLS can use: kinds of keys and uses of certificates that its library takes.

That library, BoringSSL, takes less than others, and where it does not, a server does not listen or
its handshakes break off, without a reason. These are its rules for a certificate that a party
shows; the rehearsal of `server.grpc` asks it itself.
"""

import binascii
import re
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from flower_split.errors import ConfigError

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
"""What a certificate is shown as."""

Kind = TypeVar("Kind", bound=x509.ExtensionType)

_PURPOSES = {SERVER: "server authentication", CLIENT: "client authentication"}
_CURVES = ("secp256r1", "secp384r1")
_LEAST_RSA_BITS = 528  # for a signature with SHA-256 and a salt as long, as TLS 1.3 wants it
_WANTED = "make one on the curve P-256 or P-384, or with plain RSA"

_PSS = bytes.fromhex("06092a864886f70d01010a")  # the object identifier id-RSASSA-PSS
_PRIME_FIELD = bytes.fromhex("06072a8648ce3d0101")  # with which a curve's parameters begin
_BODY = re.compile(rb"-----BEGIN (?:RSA |EC )?PRIVATE KEY-----\s*([A-Za-z0-9+/=\s]+)")


def check_usable(
    certificate: x509.Certificate,
    key: PrivateKeyTypes,
    pem: bytes,
    what: str,
    purpose: ObjectIdentifier,
) -> None:
    """Check that gRPC's TLS can show `certificate`.

    Args:
        certificate: The party's own.
        key: Its private key.
        pem: The key's text.
        what: What errors call them.
        purpose: `SERVER` or `CLIENT`.

    Raises:
        ConfigError: it cannot, for the key's kind or for what the certificate may be used for.
    """
    kind = _unusable_kind(key) or _unusable_form(certificate, pem)
    if kind:
        raise ConfigError(f"{what}: the key is {kind}, which gRPC's TLS does not take: {_WANTED}")
    extensions = _extensions(certificate, what)
    usage = _extension(extensions, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise ConfigError(
            f"{what}: the certificate's key usage leaves out digital signature, by which a party "
            "of TLS proves that it has the key: get one with it, or without a key usage"
        )
    purposes = _extension(extensions, x509.ExtendedKeyUsage)
    if purposes is not None and purpose not in purposes:
        raise ConfigError(
            f"{what}: the certificate's extended key usage leaves out {_PURPOSES[purpose]}: get "
            "one with it, or without an extended key usage"
        )


def _unusable_kind(key: PrivateKeyTypes) -> str:
    if isinstance(key, rsa.RSAPrivateKey):
        few = key.key_size < _LEAST_RSA_BITS
        return f"RSA of {key.key_size} bits" if few else ""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return "" if key.curve.name in _CURVES else f"on the curve {key.curve.name}"
    names = {
        dsa.DSAPrivateKey: "DSA",
        ed25519.Ed25519PrivateKey: "Ed25519",
        ed448.Ed448PrivateKey: "Ed448",
    }
    return next((name for kind, name in names.items() if isinstance(key, kind)), "of another kind")


def _unusable_form(certificate: x509.Certificate, pem: bytes) -> str:
    """Of a key that is of a usable kind: how it is written, where that is not the plain form."""
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    plain = certificate.public_key().public_bytes(*form)
    shown = certificate.public_bytes(Encoding.DER)
    der = _der(pem)
    if _PSS in der[:64] or (plain not in shown and _PSS in shown):
        return "for RSA-PSS alone"
    if _PRIME_FIELD in der or plain not in shown:
        return "written with its curve's parameters in place of the curve's name"
    return ""


def _der(pem: bytes) -> bytes:
    found = _BODY.search(pem)
    try:
        return b"" if found is None else binascii.a2b_base64(found[1])
    except binascii.Error:
        return b""


def _extensions(certificate: x509.Certificate, what: str) -> x509.Extensions:
    try:
        return certificate.extensions
    except ValueError as error:
        raise ConfigError(f"{what}: the certificate's extensions are malformed: {error}") from error


def _extension(extensions: x509.Extensions, kind: type[Kind]) -> Kind | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
