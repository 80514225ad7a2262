"""Mixed rows: one batch through PEFT's layers, each row with the adapter of its own session.

PEFT's own way, `adapter_names`, adds one adapter after the other in place, and its backward pass
copies the whole gradient for each: with eight adapters that takes longer than eight passes. Here
PEFT's layer computes its base for all rows at once, and what PEFT's modules make of each adapter's
rows is added to all of them at once. The result is the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn

Span = tuple[str, int]
"""An adapter's name, and how many rows on end are computed with it."""


class RowMixer:
    """Lets the LoRA layers of one model compute rows with different adapters.

    Args:
        layers: All LoRA layers of the model. While no rows are named they compute as ever.
        plain: Whether the model has no other adapted layers.
    """

    def __init__(self, layers: Sequence[LoraLayer], plain: bool = True) -> None:
        self._layers = layers
        self._plain = plain
        self._spans: tuple[Span, ...] = ()
        for layer in layers:
            module: nn.Module = layer  # type: ignore[assignment]
            module.register_forward_pre_hook(self._base_only, with_kwargs=True)
            module.register_forward_hook(self._add_adapters)

    @property
    def possible(self) -> bool:
        """Whether every layer is a plain LoRA of a linear module, of which rows can be mixed.

        Rows that are mixed are never dropped out: who trains with dropout computes alone.
        """
        return self._plain and all(
            isinstance(layer, Linear)
            and not layer.lora_variant
            and not layer.merged
            and not any(layer.lora_bias.values())
            for layer in self._layers
        )

    @contextmanager
    def rows(self, spans: Sequence[Span]) -> Iterator[None]:
        """Compute the rows of every batch with these adapters, in this order, for a while."""
        self._spans = tuple(spans)
        try:
            yield
        finally:
            self._spans = ()

    def _base_only(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self._spans:
            return None
        return args, {**kwargs, "adapter_names": ["__base__"] * len(args[0])}

    def _add_adapters(
        self, layer: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor | None:
        if not self._spans or not isinstance(layer, LoraLayer):
            return None
        incoming: Tensor = args[0]
        names = [name for name, _ in self._spans]
        if _alike(layer, self._spans):
            return _add_alike(layer, names, incoming, output)
        # Some stock layers lay the tokens of all rows end to end.
        each = len(incoming) // sum(rows for _, rows in self._spans)
        parts = incoming.split([each * rows for _, rows in self._spans])
        added = []
        for name, part in zip(names, parts, strict=True):
            down, up = layer.lora_A[name], layer.lora_B[name]
            inner = down(part.to(down.weight.dtype))
            added.append(up(inner * layer.scaling[name]))
        return output + torch.cat(added).to(output.dtype)


def _alike(layer: LoraLayer, spans: Sequence[Span]) -> bool:
    """Whether all adapters have as many rows, and the same rank and scale, in one dtype."""
    kinds = {
        (
            rows,
            layer.scaling[name],
            layer.lora_A[name].weight.shape,
            layer.lora_A[name].weight.dtype,
        )
        for name, rows in spans
    }
    return len(kinds) == 1


def _add_alike(layer: LoraLayer, names: Sequence[str], incoming: Tensor, output: Tensor) -> Tensor:
    """As `_add_adapters`, by two products of stacked matrices instead of two for every adapter."""
    down = torch.stack([_weight(layer.lora_A, name) for name in names])
    up = torch.stack([_weight(layer.lora_B, name) for name in names])
    stacked = incoming.reshape(len(names), -1, incoming.shape[-1]).to(down.dtype)
    inner = torch.bmm(stacked, down.mT) * layer.scaling[names[0]]
    base = output.reshape(len(names), -1, output.shape[-1])
    if base.dtype == inner.dtype:
        return torch.baddbmm(base, inner, up.mT).view(output.shape)
    return (base + torch.bmm(inner, up.mT).to(base.dtype)).view(output.shape)


def _weight(adapters: nn.ModuleDict, name: str) -> Tensor:
    weight: Tensor = adapters[name].weight  # type: ignore[assignment]
    return weight
