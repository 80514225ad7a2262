"""M1: canaries in the adapter. Made-up records, half of which are trained on, told apart by it.

Whoever has the adapter and the base model looks at what it made of each record's loss (Carlini et
al., arXiv:1802.08232; Jagielski et al., arXiv:2006.07709).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flower_split.audit.attacks.lone_silo import batches_of, lone_silo
from flower_split.audit.subject import Subject
from flower_split.audit.texts import Documents
from flower_split.config.wire import HOPS, WireConfig

CANARIES = 32
"""Trained on, and as many that are not."""
PLANTED = 4
"""That the control trains on, many times each."""
RATE = 3e-3
"""Learning rate of the control."""
PASSES = 150
"""Of the control at most."""
LOOK = 25
"""Passes of the control between looks."""
FALSE = 0.01
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class CanariesTold:
    """How well canaries that were trained on are told from others."""

    tpr: float
    """Share of those that were, at 1 % of the others taken for them."""
    epsilon: float
    """No run that is (ε, 0)-differentially private for a record has a smaller ε, at 95 %
    confidence; 0 tells nothing."""
    count: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class CanariesPlanted:
    """The control: a few canaries that were trained on many times."""

    found: float
    """Share of those at 1 % of the others taken for them."""
    untrained: float
    """Share of half of the others at 1 % of the other half: none was trained on."""
    passes: int


def told_apart(inside: Tensor, outside: Tensor) -> tuple[float, float]:
    """The true-positive rate at 1 % false ones, and the least ε at 95 % confidence.

    Args:
        inside: (K,): scores of canaries that were trained on; larger ones are believed more.
        outside: (K,): of those that were not.
    """
    allowed = math.floor(FALSE * len(outside))
    threshold = outside.sort(descending=True).values[allowed]
    found = int((inside > threshold).sum())
    false = int((outside > threshold).sum())
    each = (1 - CONFIDENCE) / 2
    low = _clopper_pearson(found, len(inside), each, upper=False)
    high = _clopper_pearson(false, len(outside), each, upper=True)
    return found / len(inside), max(0.0, math.log(low / high)) if low > 0 else 0.0


def tell_canaries(
    subject: Subject,
    victims: Documents,
    canaries: Documents,
    *,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> CanariesTold:
    """Train an adapter as a silo alone would, on its texts and half of the canaries.

    From the start, by the run's own loop and settings, over as many steps as its rounds have.

    Args:
        subject: What is audited.
        victims: The silo's texts.
        canaries: Of which the first half is trained on.
        seed: Of the order of the batches.
        check: Called after every step.
    """
    config = subject.config
    half, size = len(canaries) // 2, config.train.batch_size
    batches = [*batches_of(victims, size), *batches_of(canaries, size, rows=half)]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed)).tolist()
    counted = telling(canaries)
    with lone_silo(subject, config.wire) as silo:
        before = silo.losses(canaries, counted)
        steps = silo.train([batches[place] for place in order], seed=seed, check=check)
        scores = before - silo.losses(canaries, counted)
    tpr, epsilon = told_apart(scores[:half], scores[half:])
    return CanariesTold(tpr=tpr, epsilon=epsilon, count=half, steps=steps)


def plant_canaries(
    subject: Subject,
    canaries: Documents,
    *,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> CanariesPlanted:
    """Train an adapter on the first few canaries alone, until they are told from the others.

    Args:
        subject: What is audited; its codecs are used, and no noise.
        canaries: Of which only the first `PLANTED` are trained on.
        seed: Of the random numbers.
        check: Called after every step.
    """
    counted = telling(canaries)
    batches = batches_of(canaries, PLANTED, rows=PLANTED)
    passes, found, untrained = 0, 0.0, 0.0
    with lone_silo(subject, without_noise(subject.config.wire)) as silo:
        before = silo.losses(canaries, counted)
        while passes < PASSES and found < 1:
            silo.train(batches, seed=seed + passes, steps=LOOK, rate=RATE, check=check)
            passes += LOOK
            scores = before - silo.losses(canaries, counted)
            others = scores[PLANTED:]
            half = len(others) // 2
            found = told_apart(scores[:PLANTED], others)[0]
            untrained = told_apart(others[:half], others[half:])[0]
    return CanariesPlanted(found=found, untrained=untrained, passes=passes)


def telling(canaries: Documents) -> Tensor:
    """(N, T) of bool: tokens that tell canaries from one another."""
    differing: Tensor = (canaries.ids != canaries.ids[:1]).any(0)
    return canaries.scored & differing


def without_noise(wire: WireConfig) -> WireConfig:
    """The wire's codecs, without what clips and hides."""
    return WireConfig(**{hop: getattr(wire, hop) for hop in HOPS})


def _clopper_pearson(hits: int, of: int, tail: float, *, upper: bool) -> float:
    """The bound of a binomial share beyond which what was seen has less than the chance `tail`."""
    if hits == (of if upper else 0):
        return 1.0 if upper else 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        at_most = _at_most(hits if upper else hits - 1, of, share)
        # Chance of as few (upper) or as many (lower) as were seen.
        chance = at_most if upper else 1 - at_most
        if (chance > tail) == upper:
            low = share
        else:
            high = share
    return (low + high) / 2


def _at_most(hits: int, of: int, share: float) -> float:
    return sum(
        math.comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(max(0, hits + 1))
    )
