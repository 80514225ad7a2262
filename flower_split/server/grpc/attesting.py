"""The attestation service: evidence of what runs the trunk, for a silo that has a ticket."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import grpc.aio
from cryptography import x509

from flower_split.attestation import NONCE_BYTES, Attester, Evidence, binding_of
from flower_split.errors import (
    AttestationError,
    DeadlineError,
    TrunkBusyError,
    TrunkError,
    WireError,
)
from flower_split.proto import attestation_pb2 as pb
from flower_split.proto.attestation_pb2_grpc import AttestationServicer
from flower_split.server.grpc.peers import shown_by
from flower_split.server.tickets import Admission
from flower_split.tls import ServerTls
from flower_split.transport.grpc.handshake import check_version, read_purpose, read_ticket
from flower_split.transport.grpc.status import to_status

logger = logging.getLogger(__name__)

CallContext: TypeAlias = "grpc.aio.ServicerContext[pb.AttestRequest, pb.AttestReply]"

MOST_WAITING = 64
"""Silos that wait for evidence at once; one is served at a time."""
SECONDS = 30.0
"""For which a silo waits at most."""


class AttestationService(AttestationServicer):
    """Answers silos with evidence, for one event loop.

    Args:
        attester: Makes it; None says that there is none.
        tls: The trunk's, whose certificate it is about; None where there is no TLS.
        admit: Decides who may ask; None lets everyone.
    """

    def __init__(
        self, attester: Attester | None, tls: ServerTls | None, admit: Admission | None
    ) -> None:
        self._attester = attester
        self._certificate = b"" if tls is None else tls.certificate
        self._admit = admit
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="trunk-attester")
        self._waiting = 0

    def close(self) -> None:
        """Make no more evidence; what is being made is not waited for."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def Attest(  # noqa: N802 - the name that the generated base class calls
        self, request: pb.AttestRequest, context: CallContext
    ) -> pb.AttestReply:
        """Answer one silo."""
        try:
            return await self._answer(request, context)
        except TrunkError as error:
            logger.info("evidence was refused: %s", error)
            code, details, metadata = to_status(error)
        await context.abort(code, details, metadata)
        raise AssertionError  # abort raises

    async def _answer(self, request: pb.AttestRequest, context: CallContext) -> pb.AttestReply:
        check_version(request.protocol_version)
        if self._admit is not None:
            ticket = shown_by(context, read_ticket(request))
            self._admit.verify(ticket, read_purpose(request.purpose))
        attester = self._attester
        if attester is None or not self._certificate:
            raise AttestationError(
                "the trunk has no attester (trunk.attester, or the trunk service's --attester), or "
                "no TLS, and this silo demands evidence by its node config's trunk-verifier"
            )
        if len(request.nonce) != NONCE_BYTES:
            raise WireError(f"a nonce of {len(request.nonce)} bytes, expected {NONCE_BYTES}")
        if self._waiting >= MOST_WAITING:
            raise TrunkBusyError(f"{MOST_WAITING} silos wait for evidence. Try later")
        leaf = x509.load_pem_x509_certificate(self._certificate)
        binding = binding_of(bytes(request.nonce), leaf)
        self._waiting += 1
        try:
            async with asyncio.timeout(SECONDS):
                loop = asyncio.get_running_loop()
                evidence = await loop.run_in_executor(self._worker, _made, attester, binding)
        except TimeoutError:
            raise DeadlineError(f"the trunk's attester took more than {SECONDS:g} s") from None
        finally:
            self._waiting -= 1
        return pb.AttestReply(
            format=evidence.format, evidence=evidence.data, certificate=self._certificate
        )


def _made(attester: Attester, binding: bytes) -> Evidence:
    try:
        found: object = attester(binding)
    except Exception as error:
        logger.exception("the attester failed")
        raise AttestationError("the trunk's attester failed; the trunk's log says why") from error
    if not isinstance(found, Evidence):
        logger.error("the attester returned %s, expected Evidence", type(found).__name__)
        raise AttestationError("the trunk's attester failed; the trunk's log says why")
    return found
