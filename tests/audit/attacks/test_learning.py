"""A learned inverter finds what a bottom mixed, nothing in noise, and says when it is not done."""

import pytest
import torch
from audit_texts import HIDDEN, known, noise, recording, share, table, texts

from flower_split.audit import metrics
from flower_split.audit.attacks.learning import ARCHITECTURES, fit


@pytest.mark.sampled(keep=1)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_mixing_bottom_is_inverted(architecture: str) -> None:
    """Of a map that the nearest neighbour does not see through."""
    rows, given = table(), texts()
    mixed = rows @ torch.linalg.qr(table(seed=7)[:HIDDEN])[0]
    public = recording(given.public, mixed)
    made = fit(architecture, public, given, known(rows), most_steps=600, seed=0)
    found = made.reconstruct(recording(given.victims, mixed), lambda: None)
    assert made.converged and share(found, given.victims) > 0.95


def test_noise_gives_the_baseline() -> None:
    rows, given = table(), texts()
    made = fit("linear", noise(given.public, 8), given, known(rows), most_steps=600, seed=0)
    found = made.reconstruct(noise(given.victims, 9), lambda: None)
    assert made.converged
    assert share(found, given.victims) <= metrics.best_constant(given) + 0.08


def test_one_that_still_gets_better_is_under_trained() -> None:
    rows, given = table(), texts()
    made = fit("linear", noise(given.public), given, known(rows), most_steps=3, seed=0)
    assert not made.converged and made.steps == 3
