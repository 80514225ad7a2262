"""A silo's demand: evidence of what runs the trunk, before it is sent anything.

From then on the silo trusts no CA, but the one certificate whose key the evidence is about.
"""

import secrets
from dataclasses import replace

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from flower_split.attestation import NONCE_BYTES, Evidence, Verifier, binding_of
from flower_split.config.address import Address
from flower_split.errors import (
    AttestationError,
    ConfigError,
    HandshakeError,
    TrunkError,
    WireError,
)
from flower_split.proto import attestation_pb2 as pb
from flower_split.proto.attestation_pb2_grpc import AttestationStub
from flower_split.tls import ClientTls
from flower_split.tls.checks import check_chain, check_host, check_validity
from flower_split.tls.pem import parse_certificates
from flower_split.transport.grpc.channel import (
    Keepalive,
    channel_credentials,
    channel_options,
    open_channel,
)
from flower_split.transport.grpc.diagnosis import diagnose
from flower_split.transport.grpc.handshake import purpose_number, ticket_message
from flower_split.transport.grpc.status import from_status
from flower_split.transport.messages import PROTOCOL_VERSION, Purpose, Ticket

_MOST_REPLY = (1 << 20) + (1 << 18)
"""Bytes: evidence and certificates."""
_ANSWERS = 60.0
"""Seconds that the trunk has to make evidence, others' before it included."""


def demand_evidence(
    address: str,
    tls: ClientTls,
    verifier: Verifier,
    *,
    ticket: Ticket | None,
    purpose: Purpose,
    seconds: float = 10.0,
) -> ClientTls:
    """Trust in the one trunk whose evidence the verifier has taken.

    Of the silo, the trunk is sent a nonce and the ticket of the session.

    Args:
        address: `host:port` of the trunk.
        tls: Whom to believe before.
        verifier: Judges the evidence.
        ticket: Of the session, which stays good.
        purpose: Of the session.
        seconds: That connecting may take.

    Raises:
        AttestationError: the trunk shows none, or the verifier refuses it.
        CertificateError, TrunkUnavailableError: the trunk cannot be reached, or not be believed.
        TokenError, ForeignRunError, TrunkBusyError, DeadlineError: it refuses to answer.
        WireError: its answer is malformed.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    reply = _asked(address, tls, nonce, ticket, purpose, seconds)
    chain, pinned = _certificate(address, tls, bytes(reply.certificate))
    try:
        evidence = Evidence(format=reply.format, data=bytes(reply.evidence))
    except WireError as error:
        raise WireError(f"trunk at {address}: {error}") from error
    try:
        verifier(evidence, binding_of(nonce, chain[0]))
    except Exception as error:
        why = str(error) or type(error).__name__
        raise AttestationError(
            f"trunk at {address}: this silo's verifier refuses its evidence ({evidence.format}): "
            f"{why}. Nothing was sent to it"
        ) from error
    return pinned


def _asked(
    address: str,
    tls: ClientTls,
    nonce: bytes,
    ticket: Ticket | None,
    purpose: Purpose,
    seconds: float,
) -> pb.AttestReply:
    request = pb.AttestRequest(
        protocol_version=PROTOCOL_VERSION, nonce=nonce, purpose=purpose_number(purpose)
    )
    if ticket is not None:
        try:
            request.ticket.CopyFrom(ticket_message(ticket))
        except ValueError as error:
            raise HandshakeError(f"the ticket does not fit the wire: {error}") from error
    options = [
        *channel_options(Keepalive()),
        ("grpc.max_receive_message_length", _MOST_REPLY),
    ]
    peer = Address.parse(address, what="the trunk's address")
    with open_channel(peer, channel_credentials(tls), options) as channel:
        stub = AttestationStub(channel)  # type: ignore[no-untyped-call]
        try:
            grpc.channel_ready_future(channel).result(seconds)
            reply: pb.AttestReply = stub.Attest(request, timeout=_ANSWERS)
        except grpc.FutureTimeoutError:
            found = diagnose(address, tls, seconds)
            raise found or AttestationError(
                f"trunk at {address}: no connection within {seconds:g} s, and nothing else was "
                "found wrong"
            ) from None
        except grpc.RpcError as error:
            raise _meant(error, address) from error
    return reply


def _meant(error: grpc.RpcError, address: str) -> TrunkError:
    if not isinstance(error, grpc.Call):
        return AttestationError(f"trunk at {address}: {type(error).__name__}")
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return AttestationError(
            f"trunk at {address}: its version knows no evidence, and this silo's node config "
            "demands it by trunk-verifier: update flower-split there"
        )
    return from_status(error.code(), error.details(), error.trailing_metadata(), address)


def _certificate(
    address: str, tls: ClientTls, pem: bytes
) -> tuple[list[x509.Certificate], ClientTls]:
    """The chain that the trunk told, and trust in its first certificate alone."""
    what = f"trunk at {address}: the certificate beside its evidence"
    try:
        chain = parse_certificates(pem, what)
        check_validity(chain[0], what)
        check_host(chain[0], Address.parse(address).host, what)
        check_chain(chain, parse_certificates(tls.roots, "the silo's CA"), what)
        # As its own root: gRPC then takes no other certificate of the same CA.
        return chain, replace(tls, ca=chain[0].public_bytes(Encoding.PEM))
    except ConfigError as error:
        raise AttestationError(str(error)) from error
