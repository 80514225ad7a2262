"""Privacy with a number: secure noise, clipping by example, and what may be said of them."""

from flower_split.privacy.accountant import (
    Gaussians,
    SampledGaussians,
    accountant_name,
    check_accountant,
)
from flower_split.privacy.clipping import ClippedSum
from flower_split.privacy.row_gradients import RowGradients
from flower_split.privacy.secure_noise import SecureNoise
from flower_split.privacy.settings import PrivacySettings
from flower_split.privacy.silo_clipping import SiloClipping
from flower_split.privacy.statement import Statement

__all__ = [
    "ClippedSum",
    "Gaussians",
    "PrivacySettings",
    "RowGradients",
    "SampledGaussians",
    "SecureNoise",
    "SiloClipping",
    "Statement",
    "accountant_name",
    "check_accountant",
]
