"""Canaries that were trained on are told from others, and none are where nothing was learnt."""

import math
from pathlib import Path

import pytest
import torch
from audit_subject import opened
from audit_texts import TOKENS, texts

from flower_split.audit.attacks.canaries import (
    PLANTED,
    plant_canaries,
    tell_canaries,
    telling,
    told_apart,
    without_noise,
)
from flower_split.audit.texts import canary_documents
from flower_split.config.wire import WireConfig


def test_scores_that_lie_apart_and_scores_that_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    outside = torch.randn(32, generator=generator)
    assert told_apart(torch.randn(32, generator=generator), outside)[1] == 0
    tpr, epsilon = told_apart(outside + 10, outside)
    # By Clopper and Pearson all of 32 are more than 89.1 %, and none of 32 less than 10.9 %.
    assert tpr == 1 and epsilon == pytest.approx(math.log(0.8911 / 0.1089), abs=0.01)
    assert told_apart(outside - 10, outside) == (0.0, 0.0)
    assert told_apart(outside, outside.clone())[0] < 0.05


def test_tokens_that_all_canaries_have_tell_nothing() -> None:
    made = texts(8).victims
    made.ids[:, 2] = 7
    counted = telling(made)
    assert not counted[:, 2].any() and not counted[:, 0].any()
    assert torch.equal(counted[:, 1], made.scored[:, 1]) and counted.shape == (8, TOKENS)


def test_the_control_leaves_the_noise_out() -> None:
    wire = WireConfig(h1="int8", g2="nf4", h1_clip=1.0, h1_noise=2.0)
    assert without_noise(wire) == WireConfig(h1="int8", g2="nf4")


@pytest.mark.slow
def test_what_is_trained_on_many_times_is_found_and_what_is_not_is_not(tmp_path: Path) -> None:
    subject, given = opened(tmp_path, "flower_split.quickstart:base")
    made = canary_documents(given, 6 * PLANTED, seed=0)
    planted = plant_canaries(subject, made, seed=0)
    assert planted.found == 1 and planted.untrained < 0.5 and planted.passes >= 25
    told = tell_canaries(subject, given.victims, made, seed=0)
    assert told.tpr < 0.5 and told.count == 3 * PLANTED
