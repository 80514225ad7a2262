"""Evidence of what runs the trunk: what a trunk shows, and what a silo's verifier makes of it."""

from flower_split.attestation.binding import NONCE_BYTES, binding_of
from flower_split.attestation.evidence import (
    ATTESTERS,
    VERIFIERS,
    Attester,
    Evidence,
    Verifier,
    attester_of,
    verifier_of,
)

__all__ = [
    "ATTESTERS",
    "NONCE_BYTES",
    "VERIFIERS",
    "Attester",
    "Evidence",
    "Verifier",
    "attester_of",
    "binding_of",
    "verifier_of",
]
