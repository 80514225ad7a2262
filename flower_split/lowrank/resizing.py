"""Resizing: fresh factors as PEFT makes them, and a tensor of another rank fitted to one's own."""

import torch
from torch import Tensor

from flower_split.lowrank.factors import Factors
from flower_split.lowrank.instructions import CONTROL
from flower_split.lowrank.names import part_of, plain_name


def fresh_factors(
    rank: int,
    inputs: int,
    outputs: int,
    *,
    generator: torch.Generator,
    embedding: bool = False,
    scale: float = 1.0,
) -> Factors:
    """Factors of a zero update, drawn as PEFT draws them, float32.

    Of a linear module A is uniform in ±1/sqrt(inputs) and B is zero; of an embedding A is zero
    and B is standard normal.
    """
    a, b = torch.zeros(rank, inputs), torch.zeros(outputs, rank)
    if embedding:
        b.normal_(generator=generator)
    else:
        bound = inputs**-0.5
        a.uniform_(-bound, bound, generator=generator)
    return Factors(a=a, b=b, scale=scale)


def fit_part(part: str, tensor: Tensor, fresh: Tensor) -> Tensor:
    """`tensor` with as many components as `fresh`: the first ones, or filled up from `fresh`.

    With a fresh partner the update keeps its value when it is filled up, and its first
    components when it is cut.

    Args:
        part: `A`, whose components are rows, or `B`, whose components are columns.
        tensor: The factor.
        fresh: The same factor of a fresh adapter of the wanted rank.
    """
    axis = 0 if part == "A" else 1
    rank = fresh.shape[axis]
    have = tensor.shape[axis]
    if have >= rank:
        return tensor.narrow(axis, 0, rank)
    return torch.cat([tensor, fresh.narrow(axis, have, rank - have).to(tensor)], dim=axis)


def adapter_name(name: str) -> str:
    """The adapter tensor that `name` is, or is a control variate or a folded factor of.

    Raises:
        AdapterError: it is none of these.
    """
    return plain_name(name.removeprefix(CONTROL))


def at_rank(name: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The shape of the factor `name`, or of its control variate, in an adapter of another rank."""
    if part_of(name.removeprefix(CONTROL)) == "A":
        return (rank, *shape[1:])
    return (*shape[:-1], rank)
