"""Fitting: adapter tensors of another rank and scale, as the adapter of a model has them."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flower_split.adapters.folding import own_scaling
from flower_split.adapters.plan import ADAPTER
from flower_split.adapters.state import adapter_parameters
from flower_split.lowrank import Factors, Pair, fit_part, fresh_factors, pair_up


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
        fresh = None  # drawn where it is needed only: large, and the same whenever it is drawn
        for name, part, axis in ((pair.a, "A", 0), (pair.b, "B", 1)):
            if name not in tensors or tensors[name].ndim != 2:
                continue
            tensor = tensors[name].float()
            if tensor.shape[axis] >= scaling.r:
                tensor = tensor.narrow(axis, 0, scaling.r)
            else:
                fresh = fresh or _fresh(pair, scaling.r, held[pair.a][1], held[pair.b][0])
                tensor = fit_part(part, tensor, fresh.a if part == "A" else fresh.b)
            result[name] = tensor * ratio if part == "B" else tensor
    return result


def _fresh(pair: Pair, rank: int, inputs: int, outputs: int) -> Factors:
    seed = int.from_bytes(hashlib.sha256(pair.module.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    return fresh_factors(rank, inputs, outputs, generator=generator, embedding=pair.embedding)
