"""The accountant: (ε, δ) of many Gaussian releases, by Google's dp-accounting.

Releases without sampling compose to one of the Gaussian mechanism (Dong, Roth and Su, "Gaussian
Differential Privacy", arXiv:1905.02383, corollary 3.3), whose ε is known exactly (Balle and Wang,
"Improving the Gaussian Mechanism", arXiv:1805.06530).
"""

import importlib
import math
from dataclasses import dataclass
from importlib import metadata, util
from typing import Self

from flower_split.errors import ConfigError

PACKAGE, MODULE = "dp-accounting", "dp_accounting"
"""How the accountant is installed, and how it is imported."""


@dataclass(frozen=True, kw_only=True)
class Gaussians:
    """What Gaussian releases, each of whatever was released before, reveal together."""

    mu_squared: float = 0.0
    """Sum of (sensitivity / standard deviation)² over all releases."""

    def released(self, *, sensitivity: float, deviation: float, times: int) -> Self:
        """The same with further releases.

        Args:
            sensitivity: Largest L2 distance between what is released of two neighbours.
            deviation: Standard deviation of the noise on every element; above 0.
            times: How many.
        """
        return type(self)(mu_squared=self.mu_squared + times * (sensitivity / deviation) ** 2)

    def epsilon(self, delta: float) -> float:
        """The least ε for which all of it together is (ε, δ)-differentially private.

        Raises:
            ConfigError: the accountant is not installed.
        """
        if not self.mu_squared:
            return 0.0
        check_accountant("a guarantee")
        mechanism = importlib.import_module(f"{MODULE}.gaussian_mechanism")
        return float(mechanism.get_epsilon_gaussian(1 / math.sqrt(self.mu_squared), delta))


def check_accountant(what: str) -> None:
    """Raise `ConfigError` where the accountant, which `what` needs, is not installed."""
    if util.find_spec(MODULE) is None:
        raise ConfigError(
            f"{what} needs the accountant of the package {PACKAGE} where the ServerApp runs: "
            "pip install 'flower-split[privacy]'"
        )


def accountant_name() -> str:
    """The accountant with its version, for a result."""
    return f"{PACKAGE} {metadata.version(PACKAGE)}, Gaussian mechanism"
