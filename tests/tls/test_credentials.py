"""What an operator can get wrong with certificates is found before anything listens."""

import logging
from dataclasses import replace

import pytest
from certificates import DAY, expired, not_yet_valid, now, self_signed, write
from cryptography import x509

from flower_split.errors import ConfigError
from flower_split.tls import ClientTls, ServerTls
from flower_split.tls.ephemeral import make_identity
from flower_split.tls.names import certificate_names, covers


@pytest.fixture(scope="module")
def tls():
    return ServerTls.ephemeral("trunk.example", "10.0.0.7", "fd00::7")


def test_an_ephemeral_certificate_is_for_its_hosts_and_loopback(tls):
    certificate = x509.load_pem_x509_certificate(tls.certificate)
    named = set(certificate_names(certificate))
    assert named >= {"trunk.example", "10.0.0.7", "fd00::7", "127.0.0.1", "::1", "localhost"}
    assert covers(certificate, "TRUNK.example") and not covers(certificate, "other.example")
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc < 60 * DAY


def test_every_ephemeral_identity_is_its_own(tls):
    other = ServerTls.ephemeral("trunk.example")
    assert other.ca != tls.ca and other.private_key != tls.private_key


def test_nothing_shows_a_key(tls):
    assert "KEY" not in repr(tls) and "CERTIFICATE" not in repr(tls)
    certificate, key = self_signed(("silo",))
    client = ClientTls(ca=tls.ca, certificate=certificate, private_key=key)
    assert "KEY" not in repr(client)


def test_files_are_read(tls, tmp_path):
    paths = write(tmp_path, cert=tls.certificate, key=tls.private_key, ca=tls.ca)
    read = ServerTls.from_files(paths["cert"], paths["key"], ca=paths["ca"])
    assert read.certificate == tls.certificate
    read.check_host("trunk.example")
    with pytest.raises(ConfigError, match=r"cert\.pem.*not for 'elsewhere'.*trunk\.advertise"):
        read.check_host("elsewhere")


@pytest.mark.parametrize("missing", ["cert", "key", "ca"])
def test_a_missing_file_is_named(tls, tmp_path, missing):
    paths = write(tmp_path, cert=tls.certificate, key=tls.private_key, ca=tls.ca)
    paths[missing] = str(tmp_path / "nowhere.pem")
    with pytest.raises(ConfigError, match=r"nowhere\.pem"):
        ServerTls.from_files(paths["cert"], paths["key"], ca=paths["ca"])


@pytest.mark.parametrize("broken", ["cert", "key", "ca"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"-----BEGIN CERTIFICATE-----\nAA\n"])
def test_a_file_that_is_not_pem_is_named(tls, tmp_path, broken, content):
    given = {"cert": tls.certificate, "key": tls.private_key, "ca": tls.ca, broken: content}
    paths = write(tmp_path, **given)
    with pytest.raises(ConfigError, match=rf"{broken}\.pem"):
        ServerTls.from_files(paths["cert"], paths["key"], ca=paths["ca"])


def test_a_key_of_another_certificate(tls, tmp_path):
    paths = write(tmp_path, cert=tls.certificate, key=ServerTls.ephemeral().private_key)
    with pytest.raises(ConfigError, match=r"cert\.pem.*key\.pem.*does not match"):
        ServerTls.from_files(paths["cert"], paths["key"])


@pytest.mark.parametrize(
    ("made", "said"), [(expired, "expired on"), (not_yet_valid, "is valid from")]
)
def test_a_certificate_out_of_its_time(tmp_path, made, said):
    certificate, key, _ = made()
    paths = write(tmp_path, cert=certificate, key=key)
    with pytest.raises(ConfigError, match=rf"cert\.pem.*{said}"):
        ServerTls.from_files(paths["cert"], paths["key"])


def test_a_certificate_that_ends_soon_is_a_warning(caplog):
    certificate, key, ca = make_identity(("localhost",), now=now(), validity=DAY / 2)
    with caplog.at_level(logging.WARNING, logger="flower_split"):
        ServerTls(certificate=certificate, private_key=key, ca=ca)
    assert "expires on" in caplog.text


def test_a_ca_that_signed_something_else(tls):
    with pytest.raises(ConfigError, match="no CA in it signed the certificate"):
        replace(tls, ca=ServerTls.ephemeral().ca)


@pytest.mark.parametrize("half", ["certificate", "private_key"])
def test_a_silo_s_certificate_needs_its_key(half):
    certificate, key = self_signed()
    given = {"certificate": certificate, "private_key": key}
    with pytest.raises(ConfigError, match="come together"):
        ClientTls(**{half: given[half]})


def test_a_host_that_no_certificate_could_name():
    with pytest.raises(ConfigError, match=r"exämple\.org"):
        ServerTls.ephemeral("exämple.org")
