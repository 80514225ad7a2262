"""The accountant: known values, composition, and what is said without it."""

import math

import pytest

from flower_split.errors import ConfigError
from flower_split.privacy import Gaussians, accountant_name, check_accountant
from flower_split.privacy.statement import figures

pytest.importorskip("dp_accounting")


def delta_of(epsilon: float, mu: float) -> float:
    """Balle and Wang, arXiv:1805.06530, theorem 8."""

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return normal(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 3.0])
def test_epsilon_is_that_of_the_gaussian_mechanism(mu: float) -> None:
    released = Gaussians().released(sensitivity=1.0, deviation=1 / mu, times=1)
    assert delta_of(released.epsilon(1e-5), mu) == pytest.approx(1e-5, rel=1e-6)


def test_releases_compose_as_their_squares() -> None:
    nine = Gaussians().released(sensitivity=1.0, deviation=2.0, times=9)
    one = Gaussians().released(sensitivity=3.0, deviation=2.0, times=1)
    both = Gaussians().released(sensitivity=1.0, deviation=2.0, times=5)
    both = both.released(sensitivity=4.0, deviation=4.0, times=1)
    both = both.released(sensitivity=1.0, deviation=2.0, times=0)
    assert nine == one == both
    assert nine.epsilon(1e-5) == one.epsilon(1e-5)


def test_published_noise_of_one_release() -> None:
    """ε = 8, δ = 1e-5 for 64 tokens of 768 elements takes noise of 266 times the clipped signal,
    which is C / sqrt(768) an element."""
    ratio = 266 / math.sqrt(768)
    released = Gaussians().released(sensitivity=2.0, deviation=ratio, times=64)
    assert released.epsilon(1e-5) == pytest.approx(8.0, rel=0.01)


def test_nothing_released_and_very_much() -> None:
    assert Gaussians().epsilon(1e-5) == 0.0
    much = Gaussians().released(sensitivity=2.0, deviation=1e-3, times=10**9)
    assert much.epsilon(1e-5) == pytest.approx(much.mu_squared / 2, rel=0.01)


def test_a_large_epsilon_is_called_what_it_is() -> None:
    assert "no meaningful" not in figures(20.0, 1e-5)
    assert figures(20.1, 1e-5) == "(ε = 20.1, δ = 1e-05), which is no meaningful guarantee,"


def test_the_accountant_is_named_and_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accountant_name().startswith("dp-accounting ")
    monkeypatch.setattr("flower_split.privacy.accountant.MODULE", "not_installed_here")
    with pytest.raises(ConfigError, match=r"noise needs .* pip install 'flower-split\[privacy\]'"):
        check_accountant("noise")
    with pytest.raises(ConfigError, match="needs the accountant"):
        Gaussians(mu_squared=1.0).epsilon(1e-5)


def test_one_row_with_noise_as_strong_as_the_signal() -> None:
    """The figure that docs/privacy.md gives."""
    released = Gaussians().released(sensitivity=2.0, deviation=768**-0.5, times=1)
    assert released.epsilon(1e-5) == pytest.approx(1771, abs=0.5)
