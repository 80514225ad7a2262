"""Noise: standard normal, and never the same twice."""

import math

import torch

from flower_split.privacy import SecureNoise

COUNT = 1 << 20


def test_it_is_standard_normal() -> None:
    """Bounds of six standard errors: one run in 10^8 is outside of one."""
    drawn = SecureNoise().normal((COUNT,))
    assert drawn.dtype == torch.float64
    assert abs(float(drawn.mean())) < 6 / math.sqrt(COUNT)
    assert abs(float(drawn.square().mean()) - 1) < 6 * math.sqrt(2 / COUNT)
    assert abs(float(drawn.pow(4).mean()) - 3) < 6 * math.sqrt(96 / COUNT)
    for bound in (0.0, 1.0, 2.0, 3.0, -1.0):
        expected = 0.5 * math.erfc(bound / math.sqrt(2))
        spread = math.sqrt(expected * (1 - expected) / COUNT)
        assert abs(float((drawn > bound).double().mean()) - expected) < 6 * spread


def test_its_elements_are_independent() -> None:
    """Of one another, of the halves that one pair is cut into, and of the next draw."""
    noise = SecureNoise()
    drawn, following = noise.normal((COUNT,)), noise.normal((COUNT,))
    half = COUNT // 2
    for one, other in (
        (drawn[1:], drawn[:-1]),
        (drawn[half:], drawn[:half]),
        (drawn[half:].square(), drawn[:half].square()),
        (drawn, following),
    ):
        centred = [part - part.mean() for part in (one, other)]
        product = (centred[0] * centred[1]).mean() / (centred[0].std() * centred[1].std())
        assert abs(float(product)) < 6 / math.sqrt(half)


def test_no_seed_brings_it_back() -> None:
    torch.manual_seed(0)
    first = SecureNoise().normal((8,))
    torch.manual_seed(0)
    assert not torch.equal(first, SecureNoise().normal((8,)))


def test_shapes() -> None:
    noise = SecureNoise()
    assert noise.normal(()).shape == ()
    assert noise.normal((0, 3)).shape == (0, 3)
    assert noise.normal((3, 1, 5)).shape == (3, 1, 5)
    assert bool(torch.isfinite(noise.normal(((1 << 20) + 3,))).all())
