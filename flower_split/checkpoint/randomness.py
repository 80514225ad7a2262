"""The process's own random generators, which Flower's strategies draw from."""

import random
from typing import Any

import numpy as np
import torch

from flower_split.checkpoint.kinds import random_parts, random_state


def global_randomness() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's global generators."""
    return {
        "python": random_parts(random.getstate()),
        "numpy": dict(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state(),
    }


def restore_global_randomness(states: dict[str, Any]) -> None:
    """Let the global generators go on from what `global_randomness` gave."""
    random.setstate(random_state(states["python"]))
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
