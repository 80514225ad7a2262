from dataclasses import replace

import pytest

from flower_split.errors import TokenError, WireError
from flower_split.tls import ServerTls
from flower_split.transport.invitation import Invitation
from flower_split.transport.messages import Ticket

TICKET = Ticket(run_id=1, node_id=2, server_round=3, token="secret-token")
GIVEN = Invitation(address="host:1", ticket=TICKET, purpose="train", num_rounds=5, sample=True)


def test_it_survives_the_message():
    fields = {"server-round": 3, **GIVEN.to_fields()}
    assert Invitation.from_fields(fields, run_id=1, node_id=2) == GIVEN


@pytest.mark.parametrize("missing", sorted(set(GIVEN.to_fields()) - {"split.sample"}))
def test_a_message_without_an_invitation_is_refused(missing):
    fields = {name: value for name, value in GIVEN.to_fields().items() if name != missing}
    with pytest.raises(TokenError, match="SplitStrategy"):
        Invitation.from_fields(fields, run_id=1, node_id=2)


def test_an_unknown_purpose_is_refused():
    with pytest.raises(TokenError):
        Invitation.from_fields({**GIVEN.to_fields(), "split.purpose": "spy"}, run_id=1, node_id=2)


@pytest.mark.parametrize("origin_run_id", ["../x", "a/b", ".", "é", "x" * 65, 7])
def test_a_run_id_that_could_be_a_path_is_refused(origin_run_id):
    fields = {**GIVEN.to_fields(), "split.lineage": origin_run_id}
    with pytest.raises(TokenError):
        Invitation.from_fields(fields, run_id=1, node_id=2)


def test_only_the_token_proves_it():
    assert GIVEN.is_proven_by(GIVEN.proof())
    assert "secret" not in GIVEN.proof()
    for field, other in (
        ("run_id", 9),
        ("node_id", 9),
        ("server_round", 9),
        ("token", "other-token"),
    ):
        forged = replace(GIVEN, ticket=replace(TICKET, **{field: other}))
        assert not GIVEN.is_proven_by(forged.proof()), field
    assert not GIVEN.is_proven_by(replace(GIVEN, purpose="evaluate").proof())


@pytest.mark.parametrize("proof", [None, "", 0, b"x", "é"])
def test_anything_else_proves_nothing(proof):
    assert not GIVEN.is_proven_by(proof)


def test_the_token_is_not_shown():
    assert "secret-token" not in repr(GIVEN)


def read(**changes):
    fields = {**GIVEN.to_fields(), **{f"split.{name}": value for name, value in changes.items()}}
    return Invitation.from_fields(fields, run_id=1, node_id=2)


def test_it_carries_the_ca():
    ca = ServerTls.ephemeral().ca.decode()
    assert read(ca=ca).ca == ca


@pytest.mark.parametrize(
    "ca",
    [
        "nonsense",
        "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n",
        "\u00e9",
        "x" * (1 << 16 | 1),
    ],
)
def test_a_ca_that_is_none_is_refused(ca):
    with pytest.raises(WireError, match="the trunk's CA in the message"):
        read(ca=ca)


@pytest.mark.parametrize("address", ["", "host", "::1:443", "host:port"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(WireError, match="the trunk's address in the message"):
        read(address=address)


@pytest.mark.parametrize("tls", [None, 0, "no"])
def test_whether_there_is_tls_is_said_and_never_guessed(tls):
    with pytest.raises(TokenError):
        read(tls=tls)
