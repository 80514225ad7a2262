"""The pool of client models in one process: loaded once, borrowed by one session at a time.

A simulation's worker serves many silos one after the other, and they borrow the same model. Every
session overwrites all adapter tensors. A model that is left otherwise than it was, such as with a
second adapter, is not lent again: nothing goes from one silo to the next.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flower_split.adapters import AdapterPlan, resolve_plan, wrap
from flower_split.client.model_source import ModelSource
from flower_split.client.model_traces import ModelTraces
from flower_split.config.sections import CutConfig, LoraSettings, ModelConfig, SplitConfig
from flower_split.segments import load_client_model, load_skeleton

CPU = torch.device("cpu")

Key = tuple[tuple[ModelConfig, str], CutConfig, LoraSettings, tuple[Any, ...], torch.device]


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


_idle: dict[Key, list[ClientModel]] = {}
_lock = threading.Lock()


@contextmanager
def borrowed_model(
    config: SplitConfig,
    source: ModelSource | None = None,
    device: torch.device = CPU,
    lora: LoraSettings | None = None,
) -> Iterator[ClientModel]:
    """A client model for `config` that nobody else uses meanwhile.

    A model whose session failed, or has changed more than the adapter's values, is not kept.

    Args:
        config: The run's configuration.
        source: Where the model comes from; None takes the checkpoint that `config` names.
        device: Where it computes.
        lora: The silo's adapter, where it is plain LoRA; None takes the one of `config`.

    Raises:
        ModelError: the model cannot be loaded, or not be cut there.
        AdapterError: the adapter settings do not fit the model.
    """
    source = source or ModelSource(config.model)
    lora = lora or config.lora
    key = (source.key, config.split, lora, config.peft.key, device)
    with _lock:
        models = _idle.setdefault(key, [])
        model = models.pop() if models else None
    model = model or _load(config, source, device, lora)
    yield model
    if not ModelTraces.of(model.model).is_as(model.begun):
        return
    # A loop of one's own may have ended with a step and kept its gradients.
    model.model.zero_grad(set_to_none=True)
    with _lock:
        # A run with other settings in the same process leaves nothing behind in memory.
        for other in _idle.keys() - {key}:
            del _idle[other]
        _idle.setdefault(key, []).append(model)


def _load(
    config: SplitConfig, source: ModelSource, device: torch.device, lora: LoraSettings
) -> ClientModel:
    settings = config.model
    task = settings.as_task()
    skeleton = load_skeleton(source.name, revision=source.revision, task=task)
    plan = resolve_plan(skeleton, lora, config.peft)
    client = load_client_model(
        source.name,
        bottom_layers=config.split.bottom_layers,
        top_layers=config.split.top_layers,
        revision=source.revision,
        dtype=settings.dtype,
        attention=settings.attention,
        device=str(device),
        quantization=settings.quantization,
        task=task,
    )
    held, whole = (sum(map(_elements, m.parameters())) for m in (client, skeleton))
    model = wrap(client, plan)
    return ClientModel(model=model, plan=plan, share=held / whole, begun=ModelTraces.of(model))


def _elements(parameter: nn.Parameter) -> int:
    """Those of a weight before it was quantized: two of four bits are one of the tensor's."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)
