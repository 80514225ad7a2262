"""Canaries that were trained on are told from others, and none are where nothing was learnt."""

import math

import pytest
import torch

from flower_split.audit.canaries import told_apart


def test_scores_that_lie_apart_and_scores_that_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    outside = torch.randn(32, generator=generator)
    assert told_apart(torch.randn(32, generator=generator), outside)[1] == 0
    tpr, epsilon = told_apart(outside + 10, outside)
    # By Clopper and Pearson all of 32 are more than 89.1 %, and none of 32 less than 10.9 %.
    assert tpr == 1 and epsilon == pytest.approx(math.log(0.8911 / 0.1089), abs=0.01)
    assert told_apart(outside - 10, outside) == (0.0, 0.0)
    assert told_apart(outside, outside.clone())[0] < 0.05
