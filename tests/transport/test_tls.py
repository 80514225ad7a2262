"""Sessions over TLS: a silo that trusts the trunk's certificate connects, and no other does."""

import datetime
import ipaddress
from dataclasses import dataclass

import grpc
import pytest
from affine_backend import AffineBackend, forward, spec
from hosting import hosting, nothing_left

from flower_split.errors import TrunkUnavailableError
from flower_split.transport.grpc import GrpcTransport

pytest.importorskip("cryptography", reason="makes the certificates")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Identity:
    key: bytes
    certificate: bytes


def make_identity() -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trunk")])
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    host = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - hour)
        .not_valid_after(now + hour)
        .add_extension(x509.SubjectAlternativeName([host]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return Identity(
        key.private_bytes(pem, pkcs8, serialization.NoEncryption()),
        certificate.public_bytes(pem),
    )


def test_a_silo_needs_the_trunk_s_certificate() -> None:
    trunk, other = make_identity(), make_identity()
    credentials = grpc.ssl_server_credentials([(trunk.key, trunk.certificate)])
    with hosting(AffineBackend(), credentials=credentials) as server:
        trusting = grpc.ssl_channel_credentials(trunk.certificate)
        with GrpcTransport(server.address, spec(), credentials=trusting) as transport:
            assert transport.forward(forward(0)).result(20).shape == (2, 4, 8)
        for wrong in (None, grpc.ssl_channel_credentials(other.certificate)):
            with nothing_left(), pytest.raises(TrunkUnavailableError, match=server.address):
                GrpcTransport(server.address, spec(), credentials=wrong, connect_timeout=5)
