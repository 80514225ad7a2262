"""Identities of a trunk as gRPC's TLS takes them or not: every kind of key, use, chain and file."""

import datetime
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
from certificates import DAY, HOSTS, now
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes as Key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose
from cryptography.x509.oid import NameOID

from flower_split.tls.names import subject_names

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Identity:
    """Certificate with what follows it, private key, and the CA to trust; all PEM."""

    certificate: bytes
    key: bytes
    ca: bytes


def curve() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(
    key: Key | ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None = None,
    issuer_key: Key | None = None,
    *,
    called: str = "trunk",
    hosts: tuple[str, ...] = HOSTS,
    ca: bool | None = None,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    start: datetime.timedelta = -DAY,
    end: datetime.timedelta = 9 * DAY,
) -> x509.Certificate:
    """A certificate of `key`; self-signed without an issuer."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(called))
        .issuer_name(issuer.subject if issuer else name(called))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() + start)
        .not_valid_after(now() + end)
    )
    if hosts:
        builder = builder.add_extension(subject_names(hosts), critical=False)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    signer = issuer_key or key
    plain = isinstance(signer, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey))
    return builder.sign(signer, None if plain else hashes.SHA256())


def pem(thing: x509.Certificate | Key, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    if isinstance(thing, x509.Certificate):
        return thing.public_bytes(Encoding.PEM)
    return thing.private_bytes(Encoding.PEM, form, NoEncryption())


CA_KEY = curve()
CA = certificate(CA_KEY, called="CA", hosts=(), ca=True)


def of(key: Key, form: PrivateFormat = PrivateFormat.PKCS8, **options: object) -> Identity:
    """An identity of `key` that `CA` signed."""
    made = certificate(key, CA, CA_KEY, **options)  # type: ignore[arg-type]
    return Identity(pem(made), pem(key, form), pem(CA))


def alone(key: ec.EllipticCurvePrivateKey) -> Identity:
    own = pem(certificate(key))
    return Identity(own, pem(key), own)


def usage(**granted: bool) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: granted.get(name, False) for name in names})


def used_for(*purposes: x509.ObjectIdentifier) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    return ((x509.ExtendedKeyUsage(purposes), False),)


def chained(
    *order: str, inner: bool | None = True, start: datetime.timedelta = -DAY, ca: str = "root"
) -> Identity:
    """A certificate under an intermediate one, with what `order` puts into its file."""
    inner_key, key = curve(), curve()
    between = certificate(
        inner_key, CA, CA_KEY, called="inner", hosts=(), ca=inner, start=start, end=start + 2 * DAY
    )
    parts = {"leaf": pem(certificate(key, between, inner_key)), "inner": pem(between)}
    parts |= {"root": pem(CA), "BOM": BOM, "other": pem(certificate(curve(), called="other"))}
    return Identity(b"".join(parts[one] for one in order), pem(key), parts[ca])


def under(**options: object) -> Identity:
    """An identity of a CA that has the same key as `CA`, and other options."""
    own = certificate(CA_KEY, called="CA", hosts=(), **options)  # type: ignore[arg-type]
    return Identity(GOOD.certificate, GOOD.key, pem(own))


def by_openssl(*generate: str, digest: str = "sha256", signer: Key = CA_KEY) -> Identity:
    """An identity whose key `openssl generate…` makes, signed by a CA of the key `signer`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def openssl(*arguments: str) -> None:
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

        (folder / "ca.key").write_bytes(pem(signer))
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        of_ca = ("-key", "ca.key", "-subj", "/CN=CA", "-days", "9", "-out", "ca.crt")
        openssl("req", "-x509", "-new", f"-{digest}", *of_ca)
        openssl(*generate, "-out", "key.pem")
        openssl("req", "-new", "-key", "key.pem", "-subj", "/CN=trunk", "-out", "request.pem")
        by_ca = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "9")
        more = ("-extfile", "names", "-out", "own.crt")
        openssl("x509", "-req", f"-{digest}", "-in", "request.pem", *by_ca, *more)
        files = [(folder / one).read_bytes() for one in ("own.crt", "key.pem", "ca.crt")]
        return Identity(*files)


GOOD = of(curve())


def changed(**parts: Callable[[bytes], bytes]) -> Callable[[], Identity]:
    """`GOOD` with some of its files changed; `every` changes all."""

    def make() -> Identity:
        same = parts.get("every", bytes)
        return Identity(
            parts.get("certificate", same)(GOOD.certificate),
            parts.get("key", same)(GOOD.key),
            parts.get("ca", same)(GOOD.ca),
        )

    return make


def prefix(text: bytes) -> Callable[[bytes], bytes]:
    return lambda data: text + data


def replace(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new)


def in_one_line(data: bytes) -> bytes:
    first, *body, last = data.strip().split(b"\n")
    return b"\n".join([first, b"".join(body), last, b""])


def encrypted(data: bytes) -> bytes:
    key = load_pem_private_key(data, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))


def as_der(data: bytes) -> bytes:
    return x509.load_pem_x509_certificate(data).public_bytes(Encoding.DER)


RSA = ("genpkey", "-algorithm", "RSA", "-pkeyopt")
CRLF, CR = replace(b"\n", b"\r\n"), replace(b"\n", b"\r")
BROKEN = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

TAKEN: dict[str, Callable[[], Identity]] = {
    "P-256": lambda: of(curve()),
    "P-256, SEC 1": lambda: of(curve(), PrivateFormat.TraditionalOpenSSL),
    "P-384": lambda: of(ec.generate_private_key(ec.SECP384R1())),
    "RSA 1024": lambda: of(rsa.generate_private_key(65537, 1024)),
    "RSA 2048": lambda: of(rsa.generate_private_key(65537, 2048), PrivateFormat.TraditionalOpenSSL),
    "RSA 768": lambda: by_openssl(*RSA, "rsa_keygen_bits:768"),
    "its curve before the key": lambda: by_openssl("ecparam", "-name", "prime256v1", "-genkey"),
    "signed with SHA-1": lambda: by_openssl(*RSA, "rsa_keygen_bits:2048", digest="sha1"),
    "for servers": lambda: of(curve(), extensions=used_for(Purpose.SERVER_AUTH)),
    "for both": lambda: of(curve(), extensions=used_for(Purpose.SERVER_AUTH, Purpose.CLIENT_AUTH)),
    "for signatures": lambda: of(curve(), extensions=((usage(digital_signature=True), True),)),
    "its own CA": lambda: alone(curve()),
    "a chain": lambda: chained("leaf", "inner"),
    "a chain and its root": lambda: chained("leaf", "inner", "root"),
    "a chain in any order": lambda: chained("leaf", "root", "other", "inner"),
    "an intermediate one as CA": lambda: chained("leaf", ca="inner"),
    "a CA without constraints": under,
    "CRLF": changed(every=CRLF),
    "text before": changed(every=prefix(b"Bag Attributes\n    friendlyName: x\n\n")),
    "text after": changed(every=lambda data: data + b"bye"),
    "a mark before text": changed(every=prefix(BOM + b"# Gr\xc3\xb6\xc3\x9fe\n")),
    "spaces after lines": changed(every=replace(b"\n", b" \n")),
    "one long line": changed(every=in_one_line),
    "no last line end": changed(every=bytes.rstrip),
    "both in one file": changed(
        certificate=lambda data: GOOD.key + data, key=lambda data: GOOD.certificate + data
    ),
}
"""By what gRPC's TLS takes, and so must we."""

REFUSED: dict[str, tuple[Callable[[], Identity], str]] = {
    "P-224": (lambda: of(ec.generate_private_key(ec.SECP224R1())), "on the curve secp224r1"),
    "P-521": (lambda: of(ec.generate_private_key(ec.SECP521R1())), "on the curve secp521r1"),
    "secp256k1": (lambda: of(ec.generate_private_key(ec.SECP256K1())), "on the curve secp256k1"),
    "DSA": (lambda: of(dsa.generate_private_key(2048)), "the key is DSA"),
    "Ed25519": (lambda: of(ed25519.Ed25519PrivateKey.generate()), "the key is Ed25519"),
    "Ed448": (lambda: of(ed448.Ed448PrivateKey.generate()), "the key is Ed448"),
    "RSA 512": (lambda: by_openssl(*RSA, "rsa_keygen_bits:512"), "RSA of 512 bits"),
    "RSA-PSS": (
        lambda: by_openssl("genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"),
        "for RSA-PSS alone",
    ),
    "an explicit curve": (
        lambda: by_openssl("ecparam", "-name", "prime256v1", "-genkey", "-param_enc", "explicit"),
        "curve's parameters in place of the curve's name",
    ),
    "signed with MD5": (
        lambda: by_openssl(
            *RSA,
            "rsa_keygen_bits:2048",
            digest="md5",
            signer=rsa.generate_private_key(65537, 2048),
        ),
        "signed with MD5",
    ),
    "for clients": (
        lambda: of(curve(), extensions=used_for(Purpose.CLIENT_AUTH)),
        "leaves out server authentication",
    ),
    "for any purpose": (
        lambda: of(curve(), extensions=used_for(Purpose.ANY_EXTENDED_KEY_USAGE)),
        "leaves out server authentication",
    ),
    "for no signatures": (
        lambda: of(curve(), extensions=((usage(key_agreement=True), True),)),
        "leaves out digital signature",
    ),
    "RSA for encryption": (
        lambda: of(
            rsa.generate_private_key(65537, 2048),
            extensions=((usage(key_encipherment=True), True),),
        ),
        "leaves out digital signature",
    ),
    "another's key": (
        lambda: Identity(GOOD.certificate, pem(curve()), GOOD.ca),
        "does not match the certificate",
    ),
    "expired": (lambda: of(curve(), start=-9 * DAY, end=-DAY), "the certificate expired on"),
    "not valid yet": (lambda: of(curve(), start=DAY, end=9 * DAY), "is valid from"),
    "a CA that expired": (lambda: under(ca=True, start=-9 * DAY, end=-DAY), "'CN=CA'.*expired on"),
    "a CA of tomorrow": (lambda: under(ca=True, start=DAY), "'CN=CA'.*is valid from"),
    "an intermediate one that expired": (
        lambda: chained("leaf", "inner", start=-9 * DAY),
        "'CN=inner'.*expired on",
    ),
    "an intermediate one that is no CA": (
        lambda: chained("leaf", "inner", inner=False),
        "'CN=inner' may sign no others",
    ),
    "an intermediate one without constraints": (
        lambda: chained("leaf", "inner", inner=None),
        "'CN=inner' may sign no others",
    ),
    "no intermediate one": (lambda: chained("leaf"), "no CA in it signed"),
    "a chain from its end": (lambda: chained("inner", "leaf"), "certificate 2 of the file"),
    "a mark within a chain": (lambda: chained("leaf", "BOM", "inner"), "byte order mark"),
    "a mark before the certificate": (changed(certificate=prefix(BOM)), "byte order mark"),
    "a mark before the key": (changed(key=prefix(BOM)), "private key: .*byte order mark"),
    "a mark before the CA": (changed(ca=prefix(BOM)), "CA: .*byte order mark"),
    "text in the line": (changed(certificate=prefix(b"x ")), "line 1 must be the mark"),
    "a space before": (changed(key=prefix(b" ")), "line 1 must be the mark"),
    "CR": (changed(every=CR), "CR alone"),
    "UTF-16": (changed(certificate=lambda data: data.decode().encode("utf-16")), "UTF-16"),
    "null characters": (changed(every=prefix(b"a\0b\n")), "null characters"),
    "DER": (changed(certificate=as_der), "It is DER: openssl x509"),
    "empty": (changed(certificate=lambda _: b""), "no certificate in PEM form"),
    "cut off": (changed(certificate=lambda data: data[:200]), "damaged or not whole"),
    "broken": (changed(certificate=lambda _: BROKEN), "damaged or not whole"),
    "broken CA first": (changed(ca=prefix(BROKEN)), "damaged or not whole"),
    "a key for it": (changed(certificate=lambda _: GOOD.key), "It has a private key"),
    "a certificate for it": (changed(key=lambda _: GOOD.certificate), "It has a certificate"),
    "encrypted": (changed(key=encrypted), "protected by a password"),
    "OpenSSH": (
        lambda: Identity(GOOD.certificate, pem(curve(), PrivateFormat.OpenSSH), GOOD.ca),
        "ssh-keygen -p -m PKCS8",
    ),
    "two keys": (changed(key=prefix(pem(curve()))), "does not match the certificate"),
    "OpenSSL's own": (
        changed(certificate=replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE")),
        "openssl x509 -in OLD",
    ),
}
"""What gRPC's TLS does not take, and why."""

REHEARSED: dict[str, tuple[Callable[[], Identity], str]] = {
    "an unknown extension": (
        lambda: of(
            curve(),
            extensions=(
                (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00"), True),
            ),
        ),
        "unhandled critical extension",
    ),
    "a CA that signs no certificates": (
        lambda: under(ca=True, extensions=((usage(digital_signature=True), True),)),
        "CERTIFICATE_VERIFY_FAILED",
    ),
    "a CA of other hosts": (
        lambda: under(
            ca=True,
            extensions=((x509.NameConstraints([x509.DNSName("example.org")], None), True),),
        ),
        "permitted subtree violation",
    ),
}
"""What its library alone finds, and in which words."""


def grpc_takes(identity: Identity) -> bool:
    """Whether a server with `identity` and a client that trusts its CA come together by gRPC."""
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    pair = (identity.key, identity.certificate)
    try:
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    except RuntimeError:
        return False
    server.start()
    trust = grpc.ssl_channel_credentials(identity.ca)
    try:
        with grpc.secure_channel(f"127.0.0.1:{port}", trust) as channel:
            channel.unary_unary("/a/B")(b"", timeout=20.0)
    except grpc.RpcError as error:
        return bool(error.code() is grpc.StatusCode.UNIMPLEMENTED)
    finally:
        server.stop(None)
    return True
