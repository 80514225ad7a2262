"""The proof that a family is exact when it is cut: a small twin behind the real remote trunk."""

from flower_split.verification.proof import prove
from flower_split.verification.twin import Twin

__all__ = ["Twin", "prove"]
