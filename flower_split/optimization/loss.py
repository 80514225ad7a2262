"""The loss: which labels have none, and the perplexity that a mean loss stands for."""

import math

IGNORED = -100
"""Label without loss, as `torch.nn.functional.cross_entropy` and stock models have it."""

MAX_LOG_PERPLEXITY = 80.0
"""Loss from which on perplexity is reported as e^80 (about 5.5e34).

Metrics are averaged over silos, weighted by counts, and must be finite for that, in float32 too.
"""


def perplexity(loss: float) -> float:
    """Perplexity of a mean cross-entropy in nats; finite also where e^loss would not be."""
    return math.exp(min(loss, MAX_LOG_PERPLEXITY))
