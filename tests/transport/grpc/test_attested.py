"""A silo that demands evidence has it of the key that it then talks to, or sends nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from affine_backend import AffineBackend, spec
from evidence import attester, verifier
from hosting import hosting

from flower_split.attestation import Evidence
from flower_split.errors import (
    AttestationError,
    CertificateError,
    DeadlineError,
    TokenError,
    TrunkBusyError,
    TrunkUnavailableError,
    WireError,
)
from flower_split.proto import attestation_pb2 as pb
from flower_split.proto.attestation_pb2_grpc import (
    AttestationServicer,
    AttestationStub,
    add_AttestationServicer_to_server,
)
from flower_split.server.grpc import attesting
from flower_split.server.grpc.server import TrunkServer
from flower_split.server.tickets import TicketBook
from flower_split.tls import ClientTls, ServerTls
from flower_split.tls.provisioning import make_ca, make_server
from flower_split.transport.grpc.attested import demand_evidence
from flower_split.transport.grpc.channel import server_credentials
from flower_split.transport.grpc.transport import GrpcTransport


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two servers' certificates of one CA, for one host."""
    folder = tmp_path_factory.mktemp("keys")
    make_ca(folder)
    found = []
    for _ in range(2):
        make_server(folder, ["localhost"])
        certificate, key = (folder / name for name in ("server.crt", "server.key"))
        ca = str(folder / "ca.crt")
        found.append(ServerTls.from_files(str(certificate), str(key), ca=ca))
        certificate.unlink()
        key.unlink()
    return found


def serve(tls, attester=None, **options):
    return TrunkServer(AffineBackend(), "localhost:0", tls=tls, attester=attester, **options)


def demanded(server, tls, verifier=verifier, ticket=None, **options):
    return demand_evidence(
        server.address, ClientTls(ca=tls.ca), verifier, ticket=ticket, purpose="train", **options
    )


def test_the_session_is_with_the_key_that_was_vouched_for_and_no_other(keys):
    own, other = keys
    with serve(own, attester) as server:
        pinned = demanded(server, own)
        GrpcTransport(server.address, spec(), tls=pinned).close()
    with (
        serve(other, attester) as server,
        pytest.raises(CertificateError),
    ):
        GrpcTransport(server.address, spec(), tls=pinned).close()
    with serve(other, attester) as server:
        GrpcTransport(server.address, spec(), tls=ClientTls(ca=own.ca)).close()


def failing(binding):
    raise ValueError("the enclave is closed")


def silent(binding):
    return None


def of_another(binding):
    return attester(binding, b"another key")


def of_an_older_nonce(binding):
    return attester(bytes(32))


@pytest.mark.parametrize(
    ("attester", "said"),
    [
        (None, "the trunk has no attester .*trunk-verifier"),
        (failing, "the trunk's attester failed"),
        (silent, "the trunk's attester failed"),
        (
            of_another,
            "refuses its evidence .keyed-hash.: nobody who has the key.* Nothing was sent",
        ),
        (of_an_older_nonce, "refuses its evidence"),
        (lambda binding: Evidence(format="other", data=b""), "evidence of format other"),
    ],
)
def test_other_evidence_is_refused(keys, attester, said):
    with serve(keys[0], attester) as server, pytest.raises(AttestationError, match=said):
        demanded(server, keys[0])


def test_a_ticket_is_asked_for_and_stays_good(keys):
    tickets = TicketBook()
    ticket = tickets.issue(1, 2, 3, "train", seconds=60.0)
    with serve(keys[0], attester, admit=tickets) as server:
        with pytest.raises(TokenError):
            demanded(server, keys[0])
        pinned = demanded(server, keys[0], ticket=ticket)
        demanded(server, keys[0], ticket=ticket)
        GrpcTransport(server.address, spec(), ticket, tls=pinned).close()
        with pytest.raises(TokenError):
            demanded(server, keys[0], ticket=ticket)


def test_who_waits_is_bounded_in_number_and_in_time(keys, monkeypatch):
    monkeypatch.setattr(attesting, "MOST_WAITING", 1)
    monkeypatch.setattr(attesting, "SECONDS", 2.0)
    going, goes_on = threading.Event(), threading.Event()

    def slow(binding):
        going.set()
        goes_on.wait(20.0)
        return attester(binding)

    with serve(keys[0], slow) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(demanded, server, keys[0])
        assert going.wait(20.0)
        with pytest.raises(TrunkBusyError, match="wait for evidence"):
            demanded(server, keys[0])
        with pytest.raises(DeadlineError, match="attester took more than 2 s"):
            first.result(20.0)
        goes_on.set()
        demanded(server, keys[0])


class Liar(AttestationServicer):
    """Answers whatever it is given."""

    def __init__(self, **reply):
        self.reply = pb.AttestReply(**reply)

    def Attest(self, request, context):  # noqa: N802 - the name that gRPC calls
        return self.reply


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        ({}, AttestationError, "certificate"),
        ({"certificate": b"none"}, AttestationError, "certificate"),
        ({"format": "", "certificate": "own"}, WireError, "format's name"),
        ({"format": "x", "certificate": "foreign"}, AttestationError, "no CA in it signed"),
        (
            {"format": "x", "evidence": bytes(3 << 20), "certificate": "own"},
            TrunkBusyError,
            "larger",
        ),
    ],
)
def test_a_trunk_that_lies_is_refused(keys, reply, kind, said):
    own = keys[0]
    foreign = ServerTls.ephemeral("localhost")
    named = {"own": own.certificate, "foreign": foreign.certificate}
    told = reply.get("certificate", b"")
    reply = {**reply, "certificate": named.get(told, told)}
    server = grpc.server(ThreadPoolExecutor(1))
    add_AttestationServicer_to_server(Liar(**reply), server)
    port = server.add_secure_port("localhost:0", server_credentials(own))
    server.start()
    try:
        with pytest.raises(kind, match=said):
            demand_evidence(
                f"localhost:{port}", ClientTls(ca=own.ca), verifier, ticket=None, purpose="train"
            )
    finally:
        server.stop(0)


def test_a_trunk_of_an_older_version_is_told_apart(keys):
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("localhost:0", server_credentials(keys[0]))
    server.start()
    try:
        with pytest.raises(AttestationError, match="knows no evidence"):
            demand_evidence(
                f"localhost:{port}",
                ClientTls(ca=keys[0].ca),
                verifier,
                ticket=None,
                purpose="train",
            )
    finally:
        server.stop(0)


def test_an_address_at_which_nobody_is_is_diagnosed(keys):
    with hosting(AffineBackend()) as gone:
        address = gone.address
    with pytest.raises(TrunkUnavailableError, match="refused"):
        demand_evidence(
            address, ClientTls(ca=keys[0].ca), verifier, ticket=None, purpose="train", seconds=2.0
        )


@pytest.mark.parametrize("nonce", [b"", bytes(31), bytes(33)])
def test_a_malformed_request_is_refused(keys, nonce):
    with serve(keys[0], attester) as server:
        credentials = grpc.ssl_channel_credentials(keys[0].ca)
        with grpc.secure_channel(server.address, credentials) as channel:
            for request, code in (
                (pb.AttestRequest(nonce=nonce), grpc.StatusCode.FAILED_PRECONDITION),
                (pb.AttestRequest(protocol_version=9999), grpc.StatusCode.FAILED_PRECONDITION),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    AttestationStub(channel).Attest(request, timeout=10.0)
                assert caught.value.code() is code
