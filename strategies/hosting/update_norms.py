"""Update norms: how far what a silo replies is from what its message gave it.

A silo's update is T' - T, tensor by tensor: what it sends, the trunk's part of its adapter among
it, minus what it was given. Its norm is that of all tensors together (Frobenius), in float64.

LoRA factors are compared at the run's scale s: of an adapter with the scale s_i, B counts as
(s_i / s) B, so that silos of different alphas are measured alike. They are compared as factors, not
as products: most strategies average factors, and a product can be small whose factors are not. A
bound of the factors' changes bounds the product's too.

A silo of a lower rank than what it was given is compared by the components that it has. One of a
higher rank has further ones, of which one factor begins as zero, whose whole value is its update;
the other the silo draws as PEFT does, and what counts is by how much it is longer than drawn ones.

Control variates travel as their changes, which are gradients and no weights: they have a norm of
their own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from flower_split.errors import AdapterError
from flower_split.lowrank import CONTROL, Scaling, is_embedding, part_of
from flower_split.transport.arrays import read_array

UPDATE, CONTROL_CHANGE = "its update", "the change of its control variates"
"""What has a norm, in words."""

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """What a message gave a silo to train."""

    silo: ArrayRecord
    trunk: Mapping[str, Tensor]
    """The trunk's part, float32."""
    scale: float | None = None
    """Factor of the product of its LoRA factors; None for the silo's own."""

    def tensor(self, name: str) -> Values | None:
        """A float64 copy of one tensor; None where there was none of that name."""
        if name in self.trunk:
            return self.trunk[name].double().numpy()
        return read_array(name, self.silo[name]).astype(np.float64) if name in self.silo else None


def update_norms(
    arrays: ArrayRecord, given: Given, *, scaling: Scaling | None, run: Scaling | None
) -> dict[str, float]:
    """Norm of a reply's update, and of the change of its control variates where it has any.

    Args:
        arrays: Of the reply, with the trunk's part.
        given: What the silo was sent before.
        scaling: Of the silo's adapter; None where its method is not plain LoRA.
        run: Of the run's.
    """
    after = before = 1.0
    if scaling is not None and run is not None:
        after = scaling.factor / run.factor
        before = after if given.scale is None else given.scale / run.factor
    squares = {UPDATE: 0.0}
    for name, array in arrays.items():
        values = read_array(name, array).astype(np.float64)
        if name.startswith(CONTROL):
            squares[CONTROL_CHANGE] = squares.get(CONTROL_CHANGE, 0.0) + _square(values)
            continue
        old, part = given.tensor(name), _part(name) if scaling is not None else ""
        if part == "B":
            values, old = values * after, None if old is None else old * before
        if old is None:
            squares[UPDATE] += _square(values)
        elif old.shape == values.shape:
            squares[UPDATE] += _square(values - old)
        else:
            squares[UPDATE] += _square_of_other_rank(name, part, values, old, after)
    return {what: math.sqrt(square) for what, square in squares.items()}


def _square_of_other_rank(name: str, part: str, values: Values, old: Values, scale: float) -> float:
    """As the module says, of a factor with other components than `old`, which has the others."""
    if part == "B":
        values, old = values.T, old.T
    common = min(len(values), len(old))
    further = values[common:]
    if is_embedding(name) == (part == "A"):  # the factor that begins as zero
        extra = _square(further)
    else:
        # A is drawn evenly from ±1 / sqrt(inputs), an embedding's B from a normal distribution.
        longest = 1.0 if part == "A" else 2.0 * math.sqrt(values.shape[1]) * scale
        lengths = np.sqrt(np.square(further).sum(axis=1))
        extra = _square(np.maximum(lengths - longest, 0.0))
    return _square(values[:common] - old[:common]) + extra


def _part(name: str) -> str:
    """`A` or `B`; empty where `name` is no LoRA factor's."""
    try:
        return part_of(name)
    except AdapterError:
        return ""


def _square(values: Values) -> float:
    return float(np.square(values).sum())
