"""Privacy with a number: secure noise, what it guarantees, and the sentence that may be said."""

from flower_split.privacy.accountant import Gaussians, accountant_name, check_accountant
from flower_split.privacy.secure_noise import SecureNoise
from flower_split.privacy.statement import Statement

__all__ = ["Gaussians", "SecureNoise", "Statement", "accountant_name", "check_accountant"]
