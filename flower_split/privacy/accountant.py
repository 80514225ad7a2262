"""The accountant: (ε, δ) of many Gaussian releases, by Google's dp-accounting.

Those that are computed of a random sample compose by their Rényi divergences (Mironov, Talwar and
Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism", arXiv:1908.10530).

Releases without sampling compose to one of the Gaussian mechanism (Dong, Roth and Su, "Gaussian
Differential Privacy", arXiv:1905.02383, corollary 3.3), whose ε is known exactly (Balle and Wang,
"Improving the Gaussian Mechanism", arXiv:1805.06530).
"""

import importlib
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
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


@dataclass(frozen=True, kw_only=True)
class SampledGaussians:
    """Gaussian releases of samples into which every example comes by itself, each with one chance.

    For neighbours of which one has an example more (add or remove), as if numbers were real.
    """

    noise: float
    """Standard deviation in parts of the sensitivity."""
    chance: float
    """Of an example to be in one sample."""
    times: int
    """Releases."""

    def epsilon(self, delta: float) -> float:
        """The least ε that the accountant finds, for which all of it is (ε, δ)-private.

        Raises:
            ConfigError: the accountant is not installed.
        """
        if not self.times:
            return 0.0
        check_accountant("a guarantee")
        return _sampled_epsilon(self, delta)

    def most_times(self, delta: float, epsilon: float) -> int:
        """Releases that stay within ε, at most `times`.

        Raises:
            ConfigError: the accountant is not installed.
        """
        low, high = 0, self.times
        if self.epsilon(delta) <= epsilon:
            return high
        while low < high:
            middle = (low + high + 1) // 2
            if replace(self, times=middle).epsilon(delta) <= epsilon:
                low = middle
            else:
                high = middle - 1
        return low

    def least_noise(self, delta: float, epsilon: float) -> float:
        """The noise with which all `times` stay within ε, rounded up to three digits.

        Raises:
            ConfigError: the accountant is not installed.
        """
        low, high = 0.0, max(self.noise, 1.0)
        while high < _MOST_NOISE and replace(self, noise=high).epsilon(delta) > epsilon:
            low, high = high, 2 * high
        while high - low > 5e-4 * high:
            middle = (low + high) / 2
            if replace(self, noise=middle).epsilon(delta) <= epsilon:
                high = middle
            else:
                low = middle
        digits = 10.0 ** (2 - math.floor(math.log10(high)))
        return math.ceil(high * digits) / digits


_MOST_NOISE = 1e6


@lru_cache(maxsize=256)
def _sampled_epsilon(released: SampledGaussians, delta: float) -> float:
    events, rdp = (importlib.import_module(name) for name in (MODULE, f"{MODULE}.rdp"))
    accountant = rdp.RdpAccountant(
        neighboring_relation=events.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    event = events.PoissonSampledDpEvent(released.chance, events.GaussianDpEvent(released.noise))
    with _quiet("absl"):  # it warns of orders that it leaves out, without which ε is no smaller
        accountant.compose(event, released.times)
        return float(accountant.get_epsilon(delta))


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def check_accountant(what: str, *, where: str = "where the ServerApp runs") -> None:
    """Raise `ConfigError` where the accountant, which `what` needs, is not installed."""
    if util.find_spec(MODULE) is None:
        raise ConfigError(
            f"{what} needs the accountant of the package {PACKAGE} {where}: "
            "pip install 'flower-split[privacy]'"
        )


def accountant_name(mechanism: str = "Gaussian mechanism") -> str:
    """The accountant with its version, for a result."""
    return f"{PACKAGE} {metadata.version(PACKAGE)}, {mechanism}"


SAMPLED = "Rényi divergences of the Poisson-sampled Gaussian mechanism"
"""What the accountant composes of sampled releases."""
