"""Updates: gradients of the adapter's first factors, of steps over one short text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flower_split.audit.attacks.span import StepGradient
from flower_split.segments import layer_index, layers_path

ALIKE = 1e-5
"""Relative difference below which two inputs of a module are the same."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FirstFactors:
    """LoRA's factors A of modules of the first layer that are all given the same input, which
    depends on a place's own token alone."""

    names: tuple[str, ...]
    weights: tuple[nn.Parameter, ...]
    inputs: Callable[[Tensor], Tensor]
    """What they are given for rows of token ids, (B, T): (B, T, H)."""


def first_factors(client: Any, bottom: Callable[[Tensor], Tensor]) -> FirstFactors | None:
    """Those of a client model; None where its first layer has no LoRA on its inputs.

    Args:
        client: As PEFT wraps it.
        bottom: Runs the client's bottom over token ids, (B, T).
    """
    stock = next(one for one in client.modules() if isinstance(one, PreTrainedModel))
    path = layers_path(stock)
    found = [
        (name, module)
        for name, module in client.named_modules()
        if isinstance(module, nn.Linear) and ".lora_A." in name and layer_index(name, path) == 0
    ]
    looks = list[tuple[str, Any, Callable[[Tensor], Tensor]]]()
    for name, module in found:

        def inputs(ids: Tensor, module: nn.Linear = module) -> Tensor:
            with _given_to(module) as given, suppress(_EnoughError):
                bottom(ids)
            return given[0].float().cpu()

        if _of_own_token(inputs):
            looks.append((name, module.weight, inputs))
    if not looks:
        return None
    first = looks[0][2]
    probe = torch.tensor([[1, 2, 3]])
    same = [one for one in looks if _alike(one[2](probe), first(probe))]
    return FirstFactors(
        names=tuple(name for name, _, _ in same),
        weights=tuple(weight for _, weight, _ in same),
        inputs=first,
    )


class Inputs:
    """What factors are given for every token of a vocabulary, at a place.

    Args:
        factors: Whose input it is.
        vocabulary: Tokens that the model knows.
    """

    def __init__(self, factors: FirstFactors, vocabulary: int) -> None:
        self._factors = factors
        self._vocabulary = vocabulary
        self._held: tuple[int, Tensor] | None = None

    def at(self, place: int) -> Tensor:
        """(V, H)."""
        if self._held is None or self._held[0] != place:
            parts = []
            for begin in range(0, self._vocabulary, 4096):
                tokens = torch.arange(begin, min(begin + 4096, self._vocabulary))
                rows = tokens[:, None].expand(-1, place + 1)
                parts.append(self._factors.inputs(rows)[:, place].clone())
            self._held = place, torch.cat(parts)
        return self._held[1]

    def moves(self, token: int, places: int) -> bool:
        """Whether a token's input is another one at the last of some places."""
        given = self._factors.inputs(torch.full((1, places), token))[0]
        return not _alike(given[-1:], given[:1])


def step_gradient(inputs: Inputs, ids: Tensor, gradients: Tensor, *, rank: int) -> StepGradient:
    """What the span check looks at, of a step over one text.

    Args:
        inputs: Of the factors.
        ids: (T,): the tokens of which something with a gradient is computed.
        gradients: (R, H): of all factors, below one another.
        rank: Of those of a longer text.
    """
    return StepGradient(
        gradient=gradients,
        inputs=inputs.at,
        moving=inputs.moves(int(ids[0]), len(ids)),
        ids=ids,
        rank=rank,
    )


class _EnoughError(Exception):
    """Ends a forward pass of which nothing more is needed."""


@contextmanager
def _given_to(module: nn.Module) -> Iterator[list[Tensor]]:
    given = list[Tensor]()

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        given.append(args[0].detach())
        raise _EnoughError

    hook = module.register_forward_pre_hook(note)
    try:
        yield given
    finally:
        hook.remove()


def _of_own_token(inputs: Callable[[Tensor], Tensor]) -> bool:
    made = inputs(torch.tensor([[1, 3], [2, 3]]))
    return _alike(made[0, 1:], made[1, 1:])


def _alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return bool((one - other).norm() <= ALIKE * other.norm())
