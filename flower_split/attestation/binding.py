"""What evidence is about: a silo's nonce, and the key by which the trunk's channel is secured."""

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

NONCE_BYTES = 32
BINDING_BYTES = 32
_PURPOSE = b"flower_split attestation 1\0"


def binding_of(nonce: bytes, certificate: x509.Certificate) -> bytes:
    """SHA-256 over a purpose, the nonce, and the SHA-256 of the certificate's public key.

    Evidence about it was made after the nonce, by somebody who meant that key. Whether the key is
    in the hands of what the evidence describes is the attester's affair.

    Args:
        nonce: `NONCE_BYTES` random bytes of the silo's.
        certificate: Of the trunk's channel.
    """
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(_PURPOSE + nonce + hashlib.sha256(key).digest()).digest()
