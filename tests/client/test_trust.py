"""Whom a silo trusts: its own files first, then the message; plaintext never by itself."""

import logging
from dataclasses import replace

import pytest
from certificates import self_signed, write
from flwr.app import Context, RecordDict
from in_process_grid import RUN_ID

from flower_split.client import SplitSession
from flower_split.client.node_config import NodeConfig
from flower_split.client.trust import client_tls
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import TlsConfig
from flower_split.errors import CertificateError, ConfigError
from flower_split.strategies import TrunkHost
from flower_split.tls import ServerTls
from flower_split.transport.invitation import Invitation
from flower_split.transport.messages import Ticket

NODE = 5
FAR, NEAR = "192.0.2.1:9443", "[::1]:9443"
ALLOWED = TlsConfig(mode="off", allow_plaintext=True)


@pytest.fixture(scope="module")
def tls():
    return ServerTls.ephemeral()


@pytest.fixture
def invitation(tls):
    return Invitation(
        address=FAR,
        ticket=Ticket(run_id=RUN_ID, node_id=NODE, server_round=1, token="t"),
        purpose="train",
        num_rounds=1,
        ca=tls.ca.decode(),
    )


def test_the_ca_of_the_message_is_trusted(invitation, tls):
    assert client_tls(invitation, TlsConfig(), NodeConfig()).ca == tls.ca


def test_the_silo_s_own_ca_wins(invitation, tmp_path):
    own = ServerTls.ephemeral().ca
    node = NodeConfig(trunk_ca=write(tmp_path, own=own)["own"])
    assert client_tls(invitation, TlsConfig(), node).ca == own


def test_no_ca_means_the_machine_s_own_roots(invitation):
    found = client_tls(replace(invitation, ca=""), TlsConfig(), NodeConfig())
    assert found is not None and found.ca == b""


def test_a_missing_file_of_the_silo_is_named(invitation, tmp_path):
    node = NodeConfig(trunk_ca=str(tmp_path / "nowhere.pem"))
    with pytest.raises(ConfigError, match=r"nowhere\.pem"):
        client_tls(invitation, TlsConfig(), node)


def test_plaintext_is_taken_on_loopback(invitation):
    near = replace(invitation, tls=False, address=NEAR)
    assert client_tls(near, TlsConfig(), NodeConfig()) is None


@pytest.mark.parametrize("config", [TlsConfig(), TlsConfig(mode="off")])
def test_plaintext_to_another_machine_is_refused(invitation, config):
    with pytest.raises(CertificateError, match=f"trunk at {FAR}: the server offers no TLS"):
        client_tls(replace(invitation, tls=False), config, NodeConfig())


def test_plaintext_that_the_run_config_allows_is_loud(invitation, caplog):
    with caplog.at_level(logging.WARNING, logger="flower_split"):
        assert client_tls(replace(invitation, tls=False), ALLOWED, NodeConfig()) is None
    assert "NOT encrypted" in caplog.text


@pytest.mark.parametrize("address", [FAR, NEAR])
def test_a_silo_with_its_own_ca_takes_no_plaintext_at_all(invitation, tls, tmp_path, address):
    node = NodeConfig(trunk_ca=write(tmp_path, ca=tls.ca)["ca"])
    with pytest.raises(CertificateError, match="demands it by trunk-ca"):
        client_tls(replace(invitation, tls=False, address=address), ALLOWED, node)


@pytest.fixture
def operator(tls, tmp_path):
    """Files of an operator whose trunk demands client certificates, and of its silo."""
    certificate, key = self_signed(("silo",))
    return write(
        tmp_path,
        cert=tls.certificate,
        key=tls.private_key,
        ca=tls.ca,
        silo=certificate,
        silo_key=key,
    )


@pytest.fixture
def host(run_config, operator):
    """A host with the operator's own files, on IPv6."""
    settings = {
        "trunk.host": "::",
        "trunk.advertise": "[::1]",
        "tls.mode": "files",
        "tls.certificate": operator["cert"],
        "tls.private-key": operator["key"],
        "tls.ca": operator["ca"],
        "tls.client-ca": operator["silo"],
    }
    with TrunkHost(read_run_config({**run_config, **settings})) as running:
        yield running


def test_a_session_with_files_on_both_sides_over_ipv6(host, invite, run_config, operator):
    assert host.address.startswith("[::1]:") and not host.address.endswith(":0")
    shared = {"partition-id": 0, "num-partitions": 3}
    own = {
        "trunk-ca": operator["ca"],
        "trunk-certificate": operator["silo"],
        "trunk-private-key": operator["silo_key"],
    }

    def session(node_config):
        message, _ = invite()
        context = Context(RUN_ID, NODE, node_config, RecordDict(), run_config)
        return SplitSession(message, context)

    with session({**shared, **own}) as opened:
        opened.reply()
    with pytest.raises(CertificateError, match="set trunk-certificate"), session(shared):
        pass
