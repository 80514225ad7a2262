"""Combining: the trained adapter and what was folded into the model, as one adapter of scale 1."""

from collections.abc import Mapping

import torch
from torch import Tensor

from flower_split.lowrank.names import is_folded, pair_up, plain_name


def combined(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """One pair of factors for every module, whose plain product is the module's whole update.

    Args:
        state: LoRA tensors, those of the adapter `folded` (scale 1) among them where there are any.
        scale: Of the other ones.

    Raises:
        AdapterError: a tensor is no LoRA factor, or its partner is missing.
    """
    pairs = pair_up(state)
    folded = {pair.module: pair for pair in pairs if pair.folded}
    whole: dict[str, Tensor] = {}
    for pair in pairs:
        if pair.folded:
            continue
        a, b = state[pair.a], state[pair.b] * scale
        if (other := folded.get(pair.module)) is not None:
            a, b = torch.cat([a, state[other.a]]), torch.cat([b, state[other.b]], dim=1)
        whole |= {pair.a: a.contiguous(), pair.b: b.contiguous()}
    return whole


def combined_ranks(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Rank by module of what `combined` makes of `state`, without making it."""
    ranks = dict[str, int]()
    for pair in pair_up(state):
        ranks[pair.module] = ranks.get(pair.module, 0) + state[pair.a].shape[0]
    return ranks


def split_folded(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The trained tensors of `state`, and those of the adapter `folded`."""
    folded = {name: tensor for name, tensor in state.items() if is_folded(name)}
    return {name: t for name, t in state.items() if name not in folded}, folded


def plain_names(folded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the adapter `folded` under the names that PEFT writes them with."""
    return {plain_name(name): tensor for name, tensor in folded.items()}
