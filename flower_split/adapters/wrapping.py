"""Wrapping one party's segment with the adapters that the plan gives it."""

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from flower_split.adapters.plan import ADAPTER, AdapterPlan, without_peft_notices


def held_targets(model: PreTrainedModel, plan: AdapterPlan) -> tuple[str, ...]:
    """Full names of the plan's modules that this segment holds."""
    held = {
        name
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    return tuple(name for name in plan.modules if name in held)


def wrap(
    model: PreTrainedModel, plan: AdapterPlan, adapter: str = ADAPTER
) -> PeftModel | PreTrainedModel:
    """The segment with PEFT's LoRA adapters on the modules it holds; its own weights are frozen.

    The caller's random state is kept. A segment that holds none of the plan's modules (both cuts
    0) comes back as it is, frozen.
    """
    model.requires_grad_(False)
    targets = held_targets(model, plan)
    if not targets:
        return model
    with torch.random.fork_rng(devices=[]), without_peft_notices():
        wrapped = get_peft_model(model, plan.peft_config(targets), adapter_name=adapter)
    if not isinstance(wrapped, PeftModel):
        raise TypeError(f"expected PEFT to return a PeftModel, not {type(wrapped).__name__}")
    return wrapped
