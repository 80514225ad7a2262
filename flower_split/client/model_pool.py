"""The pool of client models in one process: loaded once, borrowed by one session at a time.

A simulation's worker serves many silos one after the other, and they borrow the same model. Every
session overwrites all adapter tensors. A model that is left otherwise than it was, such as with a
second adapter, is not lent again: nothing goes from one silo to the next. A simulation keeps the
models of one run; a silo service those of any, up to a bound.
"""

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from flower_split.adapters import AdapterPlan, resolve_plan, wrap
from flower_split.client.model_source import ModelSource
from flower_split.client.model_traces import ModelTraces
from flower_split.config.sections import CutConfig, LoraSettings, ModelConfig, SplitConfig
from flower_split.segments import (
    Cuts,
    PassThrough,
    find_layers,
    load_client_model,
    load_skeleton,
)

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")

Key = tuple[
    tuple[ModelConfig, Any, Any],
    CutConfig,
    CutConfig | None,
    LoraSettings,
    tuple[Any, ...],
    torch.device,
]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClientModel:
    """A silo's part of the model, with adapters, and what belongs to it."""

    model: nn.Module
    """Stock model with a place for the trunk, wrapped by PEFT where it holds adapters."""
    plan: AdapterPlan
    """Of the whole model."""
    share: float
    """Part of the uncut model's parameters that the silo holds, 0 to 1; adapters not counted."""
    begun: ModelTraces
    """As it was loaded."""


@dataclass(frozen=True, kw_only=True)
class HeldModel:
    """What is told of a model that is kept for the next session."""

    name: str
    """As the run config has it."""
    device: str
    bottom_layers: int
    top_layers: int
    num_bytes: int
    """Of its weights and adapters."""


_idle: OrderedDict[Key, list[ClientModel]] = OrderedDict()
"""The longest unused first."""
_lock = threading.Lock()
_most_bytes: int | None = None
"""Of all that is idle; None where only models of the last key are kept."""


def keep_models(most_bytes: int | None) -> None:
    """Keep models of any run, up to `most_bytes`, of which the longest unused goes first.

    While a model is lent or loaded, it comes on top. None keeps the last run's only, as before.
    """
    global _most_bytes
    with _lock:
        _most_bytes = most_bytes


def held_models() -> list[HeldModel]:
    """The models that are idle, the longest unused first."""
    with _lock:
        return [
            HeldModel(
                name=key[0][0].name,
                device=str(key[-1]),
                bottom_layers=key[1].bottom_layers,
                top_layers=key[1].top_layers,
                num_bytes=_bytes(model.model),
            )
            for key, models in _idle.items()
            for model in models
        ]


def drop_models() -> None:
    """Forget the models that are idle."""
    with _lock:
        _idle.clear()


@contextmanager
def borrowed_model(
    config: SplitConfig,
    source: ModelSource | None = None,
    device: torch.device = CPU,
    lora: LoraSettings | None = None,
    cut: CutConfig | None = None,
) -> Iterator[ClientModel]:
    """A client model for `config` that nobody else uses meanwhile.

    A model whose session failed, or has changed more than the adapter's values, is not kept.

    Args:
        config: The run's configuration.
        source: Where the model comes from; None takes the checkpoint that `config` names.
        device: Where it computes.
        lora: The silo's adapter, where it is plain LoRA; None takes the one of `config`.
        cut: Where the silo cuts it; None takes the one of `config`.

    Raises:
        ModelError: the model cannot be loaded, or not be cut there.
        AdapterError: the adapter settings do not fit the model.
    """
    source = source or ModelSource(config.model)
    lora = lora or config.lora
    cut = cut or config.split
    # A frozen trunk has no adapters, whoever computes its layers.
    bare = (
        config.split if config.trunk.adapters == "frozen" and config.split.leaves_choice else None
    )
    key = (source.key, cut, bare, lora, config.peft.key, device)
    with _lock:
        models = _idle.setdefault(key, [])
        model = models.pop() if models else None
    model = model or _load(config, source, device, lora, cut)
    yield model
    if not ModelTraces.of(model.model).is_as(model.begun):
        return
    # A loop of one's own may have ended with a step and kept its gradients.
    model.model.zero_grad(set_to_none=True)
    # What was loaded under the trunk's names after the session is nobody's.
    for module in model.model.modules():
        if isinstance(module, PassThrough):
            module.take_given()
    with _lock:
        _idle.setdefault(key, []).append(model)
        _idle.move_to_end(key)
        if _most_bytes is not None:
            _bound(_most_bytes)
            return
        # A run with other settings in the same process leaves nothing behind in memory.
        for other in _idle.keys() - {key}:
            del _idle[other]


def _bound(most: int) -> None:
    """Drop the longest unused models, until the others have at most `most` bytes."""
    sizes = {key: sum(_bytes(one.model) for one in models) for key, models in _idle.items()}
    for key, size in list(sizes.items()):
        if sum(sizes.values()) <= most:
            return
        logger.info(
            "model %s, %d MiB, is dropped: the bound is reached", key[0][0].name, size >> 20
        )
        del _idle[key], sizes[key]


def _bytes(model: nn.Module) -> int:
    """Of a model's parameters and buffers, each once."""
    tensors = {id(one): one for one in (*model.parameters(), *model.buffers())}
    return sum(one.numel() * one.element_size() for one in tensors.values())


def _load(
    config: SplitConfig,
    source: ModelSource,
    device: torch.device,
    lora: LoraSettings,
    cut: CutConfig,
) -> ClientModel:
    settings = config.model
    task = settings.as_task()
    skeleton = load_skeleton(source.name, revision=source.revision, task=task)
    plan = resolve_plan(skeleton, lora, config.peft)
    client = load_client_model(
        source.name,
        bottom_layers=cut.bottom_layers,
        top_layers=cut.top_layers,
        revision=source.revision,
        dtype=settings.dtype,
        attention=settings.attention,
        device=str(device),
        quantization=settings.quantization,
        task=task,
    )
    held, whole = (sum(map(_elements, m.parameters())) for m in (client, skeleton))
    model = wrap(client, _own_plan(plan, config, skeleton))
    return ClientModel(model=model, plan=plan, share=held / whole, begun=ModelTraces.of(model))


def _own_plan(plan: AdapterPlan, config: SplitConfig, skeleton: PreTrainedModel) -> AdapterPlan:
    """The plan of what silos train, whatever their cuts.

    With a frozen trunk that is what the silo with the fewest layers has: the layers that are the
    trunk's for some silos have no adapter for any.
    """
    split = config.split
    if config.trunk.adapters != "frozen" or not split.leaves_choice:
        return plan
    path, layers = find_layers(skeleton)
    fewest = Cuts(
        bottom_layers=split.bottom_layers, top_layers=split.top_layers, num_layers=len(layers)
    )
    return plan.without_trunk(path, fewest)


def _elements(parameter: nn.Parameter) -> int:
    """Those of a weight before it was quantized: two of four bits are one of the tensor's."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
