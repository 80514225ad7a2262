"""Fitting: adapter tensors of another rank and scale, as the adapter of a model has them."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flower_split.adapters.folding import own_scaling
from flower_split.adapters.plan import ADAPTER
from flower_split.adapters.state import adapter_parameters
from flower_split.lowrank import fit_part, fresh_factors, pair_up, part_of


def fitted(
    model: nn.Module, tensors: Mapping[str, Tensor], scale: float, adapter: str = ADAPTER
) -> dict[str, Tensor]:
    """`tensors` at the rank and scale of `adapter`; tensors that it does not have stay as they are.

    Of a larger rank the first components are taken. A smaller one is filled up with the components
    of a fresh adapter, which are the same in every process.

    Args:
        model: Holds `adapter`, perhaps in a part of its modules only.
        tensors: Named as in PEFT's `adapter_model.safetensors`.
        scale: Of the product of the given tensors.
        adapter: Its name.

    Raises:
        AdapterError: the adapter's modules differ in rank or alpha.
    """
    scaling = own_scaling(model, adapter)
    if scaling is None:
        return dict(tensors)
    held = {name: parameter.shape for name, parameter in adapter_parameters(model, adapter)}
    ratio = scale / scaling.factor
    result = dict(tensors)
    for pair in pair_up(held):
        seed = int.from_bytes(hashlib.sha256(pair.module.encode()).digest()[:7], "big")
        fresh = fresh_factors(
            scaling.r,
            held[pair.a][1],
            held[pair.b][0],
            generator=torch.Generator().manual_seed(seed),
            embedding=pair.embedding,
        )
        for name, part in ((pair.a, fresh.a), (pair.b, fresh.b)):
            if name in tensors and tensors[name].ndim == 2:
                tensor = fit_part(part_of(name), tensors[name].float(), part)
                result[name] = tensor * ratio if part_of(name) == "B" else tensor
    return result
