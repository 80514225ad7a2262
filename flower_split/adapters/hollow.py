"""Hollow models: every weight is one row, drawn anew and repeated, which takes no memory.

PEFT wraps such a model as it wraps the whole one, with every tensor of the adapter in its full size
and with the random numbers in the same order.
"""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def hollow(
    skeleton: PreTrainedModel, *, seed: int = 0, weights: Mapping[str, Tensor] | None = None
) -> PreTrainedModel:
    """A copy of `skeleton` on the CPU whose weights are rows, or those of `weights`.

    Args:
        skeleton: May live on the meta device.
        seed: Of the rows.
        weights: By full name; they are not copied.
    """
    model = copy.deepcopy(skeleton)
    generator = torch.Generator().manual_seed(seed)
    made: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in made:
                given = (weights or {}).get(f"{path}.{name}".lstrip("."))
                tensor = given if given is not None else _row(parameter, generator)
                made[id(parameter)] = nn.Parameter(tensor, requires_grad=False)
            setattr(module, name, made[id(parameter)])
    return model


def weights_of(parts: Iterable[nn.Module], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The weights of the modules `wanted` on the CPU, by full name, from whichever part has them.

    Args:
        parts: Segments of one model.
        wanted: Full names of modules.
    """
    paths = tuple(f"{name}." for name in wanted)
    return {
        name: parameter.detach().cpu()
        for part in parts
        for name, parameter in part.named_parameters(remove_duplicate=False)
        if name.startswith(paths)
    }


def _row(parameter: Tensor, generator: torch.Generator) -> Tensor:
    row = torch.rand(parameter.shape[-1:], generator=generator) + 0.5
    return row.expand(parameter.shape)
