"""The audit: what can be reconstructed of a silo's text from what leaves it, tried on its own data.

Everything runs in the silo's process; nothing is uploaded. What it finds is a lower bound of what
leaks: a low number means that these attacks failed.
"""

from flower_split.audit.auditing import run_audit
from flower_split.audit.outcome import Outcome
from flower_split.audit.policy import Policy, read_policy
from flower_split.audit.settings import AuditSettings, Budget

__all__ = ["AuditSettings", "Budget", "Outcome", "Policy", "read_policy", "run_audit"]
