"""A silo's trust in its trunk: from the silo's own files first, then from the server's message.

A silo never falls back to plaintext by itself, and what its own node config demands wins.
"""

import logging
from dataclasses import replace

from flower_split.attestation import verifier_of
from flower_split.client.node_config import NodeConfig
from flower_split.config.address import Address
from flower_split.config.sections import TlsConfig
from flower_split.errors import AttestationError, CertificateError
from flower_split.tls import ClientTls
from flower_split.transport.grpc.attested import demand_evidence
from flower_split.transport.invitation import Invitation

logger = logging.getLogger(__name__)


def client_tls(invitation: Invitation, config: TlsConfig, node: NodeConfig) -> ClientTls | None:
    """What the silo needs to connect; None for plaintext, where that is allowed.

    Raises:
        CertificateError: the server offers plaintext that this silo does not allow.
        ConfigError: a file of the node config is missing or does not fit.
    """
    if not invitation.tls:
        _check_plaintext(invitation.address, config, own_ca=bool(node.trunk_ca))
        return None
    own = ClientTls.from_files(
        ca=node.trunk_ca, certificate=node.trunk_certificate, private_key=node.trunk_private_key
    )
    if own.ca or not invitation.ca:
        return own
    return replace(own, ca=invitation.ca.encode(), source="the server's message")


def attested(
    tls: ClientTls | None, invitation: Invitation, node: NodeConfig, *, seconds: float
) -> ClientTls | None:
    """`tls`, for the trunk whose evidence the node's verifier has taken, where it has one.

    Args:
        tls: Whom the silo believes without evidence.
        invitation: Where the trunk is, and the session's ticket.
        node: The silo's own config.
        seconds: That connecting may take.

    Raises:
        AttestationError: the trunk shows none, or the verifier refuses it.
        ConfigError: there is no such verifier.
        TrunkError: the trunk cannot be asked.
    """
    verifier = verifier_of(node.trunk_verifier)
    if verifier is None:
        return tls
    if tls is None:
        raise AttestationError(
            f"trunk at {invitation.address}: this silo's node config demands evidence by "
            "trunk-verifier, and there is none of a channel without TLS: turn TLS on at the server "
            "(tls.mode)"
        )
    return demand_evidence(
        invitation.address,
        tls,
        verifier,
        ticket=invitation.ticket,
        purpose=invitation.purpose,
        seconds=seconds,
    )


def _check_plaintext(address: str, config: TlsConfig, *, own_ca: bool) -> None:
    if own_ca:
        raise CertificateError(
            f"trunk at {address}: the server offers no TLS, and this silo's node config demands "
            "it by trunk-ca: turn TLS on at the server (tls.mode), or take trunk-ca away"
        )
    if Address.parse(address).is_loopback:
        return
    if config.mode != "off" or not config.allow_plaintext:
        raise CertificateError(
            f"trunk at {address}: the server offers no TLS, and the run config that this silo "
            "got does not allow plaintext: turn TLS on at the server (tls.mode)"
        )
    logger.warning(
        "the channel to the trunk at %s is NOT encrypted: whoever can listen on the network reads "
        "this silo's activations and its token",
        address,
    )
