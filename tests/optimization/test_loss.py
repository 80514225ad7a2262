"""Perplexity, which stays finite."""

import math

import torch

from flower_split.optimization.loss import MAX_LOG_PERPLEXITY, perplexity


def test_perplexity_of_a_mean_loss() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(2.5) == math.exp(2.5)


def test_perplexity_does_not_overflow() -> None:
    for loss in (1e6, math.inf):
        assert perplexity(loss) == math.exp(MAX_LOG_PERPLEXITY)
        assert bool(torch.tensor(perplexity(loss), dtype=torch.float32).isfinite())
