"""Reading a family's entry off one forward pass of a small model."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flower_split.errors import ModelError, UnsupportedFamilyError
from flower_split.segments.families import Family
from flower_split.segments.layers import find_layers
from flower_split.segments.outside import head_of, outside_modules
from flower_split.segments.segment import without_unknown
from flower_split.segments.stock_classes import task_of_model

_ROWS, _TOKENS = 2, 9


def read_family(model: PreTrainedModel, *, caches: bool = True) -> Family:
    """The entry of a model's family: what computes after the layers, and what layers return.

    The model is called once, on random token ids, and is left as it is. Whether the entry makes a
    cut model exact is not known from this; see `check_exact`.

    Args:
        model: A stock `…ForCausalLM` with weights.
        caches: As the entry's.

    Raises:
        UnsupportedFamilyError: the layers do not run once each and in order, hand hidden states on
            in several ways, share tensors with each other or with what is around them, or
            something around them computes before and after them.
        ModelError: the stock code fails.
    """
    kind = model.config.model_type
    _, layers = find_layers(model)
    outside = outside_modules(model, layers)
    _refuse_shared(model, layers, [module for _, _, module in outside])
    record = _call(model, layers, [module for _, _, module in outside])
    if record.order != list(range(len(layers))):
        raise UnsupportedFamilyError(
            f"{kind} runs its layers in the order {record.order}, expected each once and in turn; "
            "it cannot be cut"
        )
    if len(record.returns) != 1:
        raise UnsupportedFamilyError(
            f"the layers of {kind} return a tuple or not, each its own way; it cannot be cut"
        )
    head = head_of(model)
    after, before = set[str](), set[str]()
    for index, (_, name, module) in enumerate(outside):
        if module is not head:
            times = record.outside.get(index, set())
            if len(times) > 1 or _BETWEEN in times:
                raise UnsupportedFamilyError(
                    f"{name!r} of {kind} computes between the layers, or before and after them, so "
                    "that no one party could hold it; the model cannot be cut"
                )
            (after if times == {_AFTER} else before).add(name)
    if both := sorted(after & before):
        raise UnsupportedFamilyError(
            f"{kind} has two modules {both[0]!r}, one before the layers and one after them; it "
            "cannot be cut"
        )
    return Family(
        model_type=kind,
        task=task_of_model(model),
        after=tuple(sorted(after)),
        returns_tuple=record.returns == {True},
        caches=caches,
    )


_BEFORE, _BETWEEN, _AFTER = range(3)


@dataclass
class _Record:
    order: list[int] = field(default_factory=list)
    """Layers as they began."""
    finished: int = 0
    returns: set[bool] = field(default_factory=set)
    outside: dict[int, set[int]] = field(default_factory=dict)
    """When a module outside the layers was called, by its place in the list."""


def _call(model: PreTrainedModel, layers: nn.ModuleList, outside: list[nn.Module]) -> _Record:
    record = _Record()

    def layer_begins(index: int) -> Any:
        def note(*_: Any) -> None:
            record.order.append(index)

        return note

    def layer_ends(layer: nn.Module, args: Any, output: Any) -> None:
        record.finished += 1
        record.returns.add(isinstance(output, tuple | list))

    def outside_begins(index: int) -> Any:
        def note(*_: Any) -> None:
            when = _BEFORE if not record.order else _BETWEEN
            if record.finished >= len(layers):
                when = _AFTER
            record.outside.setdefault(index, set()).add(when)

        return note

    generator = torch.Generator().manual_seed(0)
    vocabulary = getattr(model.config.get_text_config(decoder=True), "vocab_size", None)
    if not isinstance(vocabulary, int):
        raise UnsupportedFamilyError(
            f"{model.config.model_type} has no table of tokens, and cannot be cut"
        )
    ids = torch.randint(0, vocabulary, (_ROWS, _TOKENS), generator=generator).to(model.device)
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_pre_hook(layer_begins(index)).remove)
            stack.callback(layer.register_forward_hook(layer_ends).remove)
        for index, module in enumerate(outside):
            # A container may be passed by: what it holds is called.
            for part in module.modules():
                stack.callback(part.register_forward_pre_hook(outside_begins(index)).remove)
        model.eval()
        try:
            with torch.no_grad():
                call = without_unknown(model.base_model, use_cache=False)
                model(input_ids=ids, **call)
        except Exception as error:  # whatever the stock code raises
            raise ModelError(
                f"the stock code of {model.config.model_type} fails on plain token ids with "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            for module, training in modes:
                module.training = training
    return record


def _refuse_shared(model: PreTrainedModel, layers: nn.ModuleList, outside: list[nn.Module]) -> None:
    """Check that no tensor of a layer is another layer's or of something around the layers."""
    names: dict[int, str] = {}
    for index, layer in enumerate(layers):
        for tensor in _tensors(layer):
            if (other := names.setdefault(id(tensor), f"layer {index}")) != f"layer {index}":
                raise UnsupportedFamilyError(
                    f"layers of {model.config.model_type} share tensors ({other} and layer "
                    f"{index}), so that a silo and the trunk would train one tensor each on its "
                    "own; it cannot be cut"
                )
    if any(id(tensor) in names for module in outside for tensor in _tensors(module)):
        raise UnsupportedFamilyError(
            f"a layer of {model.config.model_type} shares a tensor with a module outside the "
            "layers; it cannot be cut"
        )


def _tensors(module: nn.Module) -> list[Tensor]:
    return list(module.parameters())
