"""A test double of attestation: evidence is a keyed hash of the binding.

Its module can be installed as another package's, and says whom it takes for an enclave by a key
that trunk and silo have in common; no real evidence is of that kind.
"""

import hashlib
import hmac

from flower_split.attestation import Evidence

FORMAT = "keyed-hash"
KEY = b"of the double"


def attester(binding, key=KEY):
    """Evidence of whoever has the key."""
    return Evidence(format=FORMAT, data=hmac.digest(key, binding, hashlib.sha256))


def verifier(evidence, binding):
    """Takes evidence of whoever has the key, about this binding."""
    if evidence.format != FORMAT:
        raise ValueError(f"evidence of format {evidence.format}, expected {FORMAT}")
    if not hmac.compare_digest(evidence.data, hmac.digest(KEY, binding, hashlib.sha256)):
        raise ValueError("nobody who has the key made it about this binding")
