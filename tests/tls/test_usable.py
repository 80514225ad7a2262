"""What gRPC's TLS takes is accepted, and what it does not is refused with the reason."""

import re

import pytest
from certificates import DAY
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from identities import (
    BOM,
    GOOD,
    REFUSED,
    TAKEN,
    Identity,
    curve,
    grpc_takes,
    of,
    under,
    used_for,
)

from flower_split.errors import ConfigError
from flower_split.tls import ClientTls, ServerTls


def made(identity: Identity) -> ServerTls:
    tls = ServerTls(
        certificate=identity.certificate, private_key=identity.key, ca=identity.ca, source="given"
    )
    ClientTls(ca=identity.ca)
    return tls


@pytest.mark.parametrize("name", TAKEN)
def test_what_grpc_takes_is_accepted(name: str) -> None:
    identity = TAKEN[name]()
    assert grpc_takes(identity)
    made(identity).check_host("localhost")


@pytest.mark.parametrize("name", REFUSED)
def test_what_grpc_does_not_take_is_refused_with_the_reason(name: str) -> None:
    make, reason = REFUSED[name]
    identity = make()
    assert not grpc_takes(identity)
    with pytest.raises(ConfigError, match=f"(?s)^given.*{reason}"):
        made(identity)


def test_a_silos_certificate_is_held_to_the_same() -> None:
    of_servers = used_for(ExtendedKeyUsageOID.SERVER_AUTH)
    for identity, reason in (
        (of(ec.generate_private_key(ec.SECP521R1())), "secp521r1"),
        (of(curve(), extensions=of_servers), "client authentication"),
    ):
        with pytest.raises(ConfigError, match=reason):
            ClientTls(certificate=identity.certificate, private_key=identity.key)
    ClientTls(certificate=GOOD.certificate, private_key=GOOD.key)


def test_cas_to_trust_are_looked_at() -> None:
    old = under(ca=True, start=-9 * DAY, end=-DAY).ca
    for ca, reason in ((BOM + GOOD.ca, "byte order mark"), (old, "expired on")):
        with pytest.raises(ConfigError, match=reason):
            ClientTls(ca=ca)
        with pytest.raises(ConfigError, match=reason):
            ServerTls.ephemeral(client_ca=ca)
    ClientTls(ca=GOOD.ca + old)  # one that expired is among many


def test_the_files_are_named(tmp_path) -> None:
    for file, content in (("own.crt", GOOD.certificate), ("own.key", BOM + GOOD.key)):
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=r"own\.crt.*own\.key.*private key.*byte order mark"):
        ServerTls.from_files(str(tmp_path / "own.crt"), str(tmp_path / "own.key"))


def test_a_path_that_is_none_is_named() -> None:
    for path in ("~nobody-of-this-name/own.crt", "a\0b"):
        with pytest.raises(ConfigError, match=re.escape(repr(path))):
            ClientTls.from_files(ca=path)
