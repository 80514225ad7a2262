"""What is provisioned is trusted by what it is for, is nobody else's to read, and is kept."""

import stat
from pathlib import Path

import pytest
from cryptography import x509

from flower_split.errors import ConfigError
from flower_split.tls import ClientTls, ServerTls
from flower_split.tls.names import certificate_names
from flower_split.tls.provisioning import make_ca, make_server, make_silo, make_silo_certificate


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    make_ca(folder)
    make_server(folder, ["trunk.example.org", "192.0.2.7"])
    make_silo(folder, "clinic")
    make_silo_certificate(folder, "clinic")
    return folder


def read(folder: Path, *names: str) -> list[bytes]:
    return [(folder / name).read_bytes() for name in names]


def test_both_ends_of_the_trunk_take_them(keys: Path) -> None:
    ca, server, server_key = read(keys, "ca.crt", "server.crt", "server.key")
    silo, silo_key = read(keys, "clinic-trunk.crt", "clinic-trunk.key")
    ServerTls(certificate=server, private_key=server_key, ca=ca, client_ca=ca)
    ClientTls(ca=ca, certificate=silo, private_key=silo_key)


def test_the_server_s_names(keys: Path) -> None:
    (server,) = read(keys, "server.crt")
    assert certificate_names(x509.load_pem_x509_certificate(server)) == [
        "trunk.example.org",
        "localhost",
        "192.0.2.7",
        "127.0.0.1",
        "::1",
    ]
    with pytest.raises(ConfigError, match="punycode"):
        make_server(keys, ["spätzle.example.org"])


def test_keys_are_their_owner_s_and_are_never_replaced(keys: Path) -> None:
    private = sorted(path.name for path in keys.glob("*.key"))
    assert private == ["ca.key", "clinic-trunk.key", "clinic.key", "server.key"]
    assert all(stat.S_IMODE((keys / name).stat().st_mode) == 0o600 for name in private)
    before = {path.name: path.read_bytes() for path in keys.iterdir()}
    for make in (
        lambda: make_ca(keys),
        lambda: make_server(keys, ["other"]),
        lambda: make_silo(keys, "clinic"),
        lambda: make_silo_certificate(keys, "clinic"),
    ):
        with pytest.raises(FileExistsError):
            make()
    assert {path.name: path.read_bytes() for path in keys.iterdir()} == before


def test_a_silo_s_certificate_is_no_server_s(keys: Path) -> None:
    silo, silo_key, ca = read(keys, "clinic-trunk.crt", "clinic-trunk.key", "ca.crt")
    with pytest.raises(ConfigError):
        ServerTls(certificate=silo, private_key=silo_key, ca=ca)
