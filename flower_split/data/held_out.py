"""Holding out: the part of a silo's data that it never trains on."""

import torch

from flower_split.config.seeds import derive_seed
from flower_split.data.examples import Examples
from flower_split.errors import DataError


def hold_out(examples: Examples, fraction: float, *, seed: int) -> tuple[Examples, Examples]:
    """The training and the held-out part: disjoint, complete, each in the examples' order.

    A `fraction` above 0 holds out at least one example, and one at least is left to train on.

    Args:
        examples: One silo's data.
        fraction: Share to hold out, at least 0 and below 1; 0 holds out nothing.
        seed: Chooses which.

    Raises:
        DataError: there is a single example and it should be both.
    """
    if fraction == 0:
        return examples, examples.select([])
    length = len(examples)
    if length < 2:
        raise DataError(
            f"{examples.origin}: a silo with {length} example cannot hold out a part of it: give "
            "it more data, or set data.eval-path or data.eval-fraction 0"
        )
    count = min(max(1, round(length * fraction)), length - 1)
    held = set(_permutation(length, seed, "hold out")[:count])
    train = [index for index in range(length) if index not in held]
    return examples.select(train), examples.select(sorted(held))


def limit(examples: Examples, most: int, *, seed: int) -> Examples:
    """At most `most` of the examples, chosen by `seed`, in their order; 0 keeps all."""
    if not 0 < most < len(examples):
        return examples
    return examples.select(sorted(_permutation(len(examples), seed, "limit")[:most]))


def _permutation(length: int, seed: int, purpose: str) -> list[int]:
    generator = torch.Generator().manual_seed(derive_seed(seed, purpose))
    order: list[int] = torch.randperm(length, generator=generator).tolist()
    return order
