"""A client model's forward pass in two halves: up to the trunk's place, and on from there.

The stock forward pass is one call and knows no pause. So each half is the stock model anew, around
the client model's own layers, embeddings and head, with stand-ins for those of the other half: the
first one notes what arrives at the trunk's place, the second one goes through its stand-ins and
puts the trunk's answer in at that same place. Masks, positions and rotary embeddings are the stock
code's own in both, whatever the family, and no thread has to be stopped in the middle of a pass.
The price is that the second half makes masks and positions again.

Nothing is copied but the hull: adapters, hooks, modes and gradients are the client model's.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from flower_split.config.tasks import CAUSAL_LM
from flower_split.devices import as_inner
from flower_split.errors import ModelError, SharedTensorError
from flower_split.segments.layers import find_layers
from flower_split.segments.outside import head_of, outside_modules
from flower_split.segments.pass_through import PassThrough, Stub
from flower_split.segments.prefix import Prefix, split_prefix
from flower_split.segments.randomness import (
    RandomState,
    random_numbers,
    random_state,
    set_random_state,
)
from flower_split.segments.segment import without_unknown
from flower_split.segments.stock_classes import task_of_model


@dataclass(frozen=True, kw_only=True, eq=False)
class Pause:
    """A forward pass that has come to the trunk's place."""

    hidden: Tensor
    """h1, (B, T, H), with the graph of the first half."""
    inputs: Mapping[str, Any]
    """What the second half is called with, beside the hidden states."""
    prefix: Prefix | None
    """What the trunk's and the second half's layers begin with; None for nothing."""
    random: RandomState | None
    """Where the pass's random numbers stand; None where it draws the caller's."""


class Halves:
    """The two halves of a client model. Not for calls from several threads.

    Args:
        client_model: From `split_model` or `load_client_model`, wrapped by PEFT or not.
        slot: Its layer at the trunk's place.
        prepare: Makes of a call of the client model one of the stock model inside.
        preparing: The tensors with which it does.

    Raises:
        SharedTensorError: a tensor that is trained belongs to both halves or to none, so that
            gradients could not be added up in the order of the whole pass.
    """

    def __init__(
        self,
        client_model: nn.Module,
        slot: PassThrough,
        *,
        prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
        preparing: Collection[nn.Parameter] = (),
    ) -> None:
        self._prepare = prepare
        self._trunk_layers = slot.cuts.trunk_range
        stock = next((m for m in client_model.modules() if isinstance(m, PreTrainedModel)), None)
        if stock is None:
            raise ModelError(
                f"{type(client_model).__name__} holds no stock model; expected a client model of "
                "split_model or load_client_model"
            )
        self._stock = stock
        self._exit, self._entry = _Exit(slot), _Entry(slot)
        self._uncached = without_unknown(stock.base_model, use_cache=False)
        self._reads_ids = task_of_model(stock) != CAUSAL_LM
        self._first = _half(stock, slot, self._exit, after=False)
        self._second = _half(stock, slot, self._entry, after=True)
        hull = _hull(stock)
        self._hulls = [*zip(_hull(self._first), hull, strict=True)]
        self._hulls += zip(_hull(self._second), hull, strict=True)
        aside = {*slot.parameters(recurse=False), *preparing}
        _check_trained(client_model, aside, self._first, self._second)

    def first(self, inputs: Mapping[str, Tensor], seed: int | None = None) -> Pause:
        """Embeddings and bottom.

        Args:
            inputs: As the stock model takes them, `labels` among them.
            seed: Of the random numbers of the whole pass; None draws the caller's.

        Raises:
            ModelError: the stock model did not come to the trunk's place.
        """
        self._follow_modes()
        try:
            with random_numbers(inputs["input_ids"].device, seed):
                call = dict(self._prepare(inputs))
                labels = {"labels": call.pop("labels")} if "labels" in call else {}
                prefix = None
                if _CACHE in call:
                    prefix = split_prefix(call[_CACHE], self._trunk_layers, self._stock)
                self._first.base_model(**call, **self._uncached, return_dict=True)
            if self._exit.arrived is None:
                raise ModelError(
                    f"the stock {self._first.config.model_type} model returned without running "
                    "its layers"
                )
            hidden, state = self._exit.arrived
        finally:
            self._exit.arrived = None
        if not self._reads_ids:
            for given in _ROWS & call.keys():
                del call[given]
        if prefix is not None:
            call[_CACHE] = prefix.cache
        return Pause(
            hidden=hidden,
            inputs={**call, **labels},
            prefix=prefix,
            random=None if seed is None else state,
        )

    def second(self, pause: Pause, hidden: Tensor, **more: Any) -> Any:
        """Top and head: what the stock model returns, with a loss where there were labels.

        Args:
            pause: Where the first half stopped.
            hidden: h2, (B, T, H), on the model's device.
            more: Further arguments of the stock model, such as `num_items_in_batch`.
        """
        self._follow_modes()
        self._entry.given = (hidden, pause.random)
        call = {**pause.inputs, **more, **self._uncached, "return_dict": True}
        instead = _Embedded(hidden.detach())
        hook: Any = None
        if self._reads_ids:  # a classifying head finds the padding by them
            hook = self._second.base_model.register_forward_pre_hook(instead, with_kwargs=True)
        else:
            call["inputs_embeds"] = instead.hidden
        try:
            with random_numbers(hidden.device, None if pause.random is None else 0):
                return self._second(**call)
        finally:
            self._entry.given = None
            if hook is not None:
                hook.remove()

    def _follow_modes(self) -> None:
        for ours, theirs in self._hulls:
            ours.training = theirs.training


class _Embedded:
    """A hook of the base model: hidden states in place of the token ids that its caller has."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden

    def __call__(
        self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        call = {**kwargs, "inputs_embeds": self.hidden}
        if args:
            return (None, *args[1:]), call
        return args, {**call, "input_ids": None}


_CACHE = "past_key_values"
_ROWS = {"input_ids", "inputs_embeds"}
"""Arguments of which the second half has the hidden states instead."""


class _Exit(PassThrough):
    """The end of the first half: notes what arrives. The rest of the pass is thrown away."""

    def __init__(self, slot: PassThrough) -> None:
        super().__init__(slot)
        self.arrived: tuple[Tensor, RandomState] | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.arrived = (hidden_states, random_state(hidden_states.device))
        return super().forward(hidden_states.detach(), *args, **kwargs)


class _Entry(PassThrough):
    """The start of the second half: answers with what the trunk gave.

    Stand-ins before it may have drawn random numbers (an embedding's dropout), hence their state.
    """

    def __init__(self, slot: PassThrough) -> None:
        super().__init__(slot)
        self.given: tuple[Tensor, RandomState | None] | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.given is None:
            raise ModelError("the second half of a client model was called without the first")
        hidden, state = self.given
        if state is not None:
            set_random_state(hidden.device, state)
        return super().forward(as_inner(hidden), *args, **kwargs)


def _half(
    stock: PreTrainedModel, slot: PassThrough, place: PassThrough, *, after: bool
) -> PreTrainedModel:
    """The stock model anew, with `place` for `slot` and stand-ins for what is on its other side."""
    _, layers = find_layers(stock)
    family, head = slot.family, head_of(stock)
    instead: dict[int, Any] = {id(parameter): parameter for parameter in stock.parameters()}
    is_after = False
    for layer in layers:
        is_after = is_after or layer is slot
        held = is_after == after
        instead[id(layer)] = layer if held else PassThrough(layer, returns_tuple=slot.returns_tuple)
    instead[id(slot)] = place
    for _, name, module in outside_modules(stock, layers):
        held = (module is head or name in family.after) == after
        instead[id(module)] = module if held else Stub(module, stock.dtype)
    hull = _hull(stock)
    for child in (child for owner in hull for child in owner.children()):
        # Dropout and the like follow the client model's mode. Rotary embeddings, which have
        # buffers that the stock code may write to, are every half's own.
        if child not in (*hull, layers) and next(child.buffers(), None) is None:
            instead.setdefault(id(child), child)
    return copy.deepcopy(stock, instead)


def _hull(stock: PreTrainedModel) -> list[nn.Module]:
    """The modules around the list of layers, from outside inwards."""
    _, layers = find_layers(stock)
    return [
        module
        for module in stock.modules()
        if module is not layers and any(inner is layers for inner in module.modules())
    ]


def _check_trained(
    client_model: nn.Module, aside: Collection[nn.Parameter], *halves: nn.Module
) -> None:
    first, second = (set(half.parameters()) for half in halves)
    for name, parameter in client_model.named_parameters():
        if parameter in aside:
            continue
        if parameter.requires_grad and (parameter in first) == (parameter in second):
            owners = "both halves" if parameter in first else "neither half"
            raise SharedTensorError(
                f"{name} is trained and belongs to {owners} of the client model, whose passes can "
                "therefore not overlap: freeze it, or train without stages"
            )
