"""Folding: a second, frozen adapter, active together with the trained one.

What a strategy folds into the model's weights is a frozen PEFT adapter here. The base weights are
never edited, so that they can be shared, and that nothing is lost to their dtype.
"""

import warnings
from collections.abc import Mapping

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flower_split.adapters.plan import ADAPTER, PEFT_PREFIX
from flower_split.adapters.state import adapter_parameters, load_state
from flower_split.errors import AdapterError
from flower_split.lowrank import FOLDED, Instructions, Scaling, pair_up, plain_names
from flower_split.segments.randomness import numbers_aside


def own_scaling(model: nn.Module, adapter: str = ADAPTER) -> Scaling | None:
    """Rank, alpha and scaling of `adapter`; None when `model` holds no part of it.

    Raises:
        AdapterError: its modules differ in them.
    """
    found = {
        (layer.r[adapter], float(layer.lora_alpha[adapter]), bool(layer.use_rslora[adapter]))
        for layer in model.modules()
        if isinstance(layer, LoraLayer) and adapter in layer.r
    }
    if len(found) > 1:
        raise AdapterError(
            f"the adapter {adapter!r} has {len(found)} different ranks or alphas "
            f"({', '.join(map(str, sorted(found)))}); a silo must use one r and one lora_alpha for "
            "all modules, without rank_pattern and alpha_pattern"
        )
    if not found:
        return None
    r, alpha, rslora = found.pop()
    return Scaling(r=r, alpha=alpha, rslora=rslora)


def fold(model: nn.Module, state: Mapping[str, Tensor], adapter: str = ADAPTER) -> None:
    """Compute with `state` in addition to `adapter`, frozen; an empty one takes it away again.

    Args:
        model: A PEFT model.
        state: Factors of scale 1, named as `flower_split.lowrank.folded_name` names them, of
            modules that have an adapter; the ranks may differ between modules.
        adapter: The trained adapter.

    Raises:
        AdapterError: `state` does not fit the model.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    present = any(FOLDED in layer.r for layer in layers)
    if not state and not present:
        return
    if not isinstance(model, PeftModel):
        raise AdapterError("folded tensors came for a model that holds no LoRA adapter")
    if present:
        delete_adapter(model, FOLDED)
    if state:
        add_folded(model, state, adapter, FOLDED)
    active = [adapter, FOLDED] if state else [adapter]
    trained = [parameter.requires_grad for _, parameter in adapter_parameters(model, adapter)]
    for layer in layers:
        layer.set_adapter(active)
    for _, parameter in adapter_parameters(model, FOLDED):
        parameter.requires_grad_(False)
    for (_, parameter), wanted in zip(adapter_parameters(model, adapter), trained, strict=True):
        parameter.requires_grad_(wanted)


def add_folded(model: PeftModel, state: Mapping[str, Tensor], adapter: str, name: str) -> None:
    """Make the adapter `name` of the factors that are to lie beneath `adapter`.

    PEFT chooses by itself which adapter is active then.

    Args:
        model: Holds `adapter`.
        state: See `fold`; not empty.
        adapter: The trained adapter.
        name: Of the new one.

    Raises:
        AdapterError: `state` does not fit the model; no adapter is made then.
    """
    held = {name.removeprefix(PEFT_PREFIX) for name, _ in _adapted(model, adapter)}
    ranks = {
        pair.module.removeprefix(PEFT_PREFIX): state[pair.a].shape[0] for pair in pair_up(state)
    }
    unknown = ranks.keys() - held
    if unknown:
        raise AdapterError(
            f"folded tensors came for {len(unknown)} modules without an adapter (first: "
            f"{min(unknown)}); all silos must adapt the same modules"
        )
    trained = model.peft_config[adapter]
    config = patterned_config(
        ranks, fan_in_fan_out=isinstance(trained, LoraConfig) and trained.fan_in_fan_out
    )
    with numbers_aside():
        model.add_adapter(name, config)
    try:
        load_state(model, plain_names(state), name)
    except AdapterError:
        delete_adapter(model, name)
        raise


def delete_adapter(model: PeftModel, name: str) -> None:
    """Delete the adapter `name`; PEFT chooses by itself which one is active then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells which
        model.delete_adapter(name)


def _adapted(model: nn.Module, adapter: str) -> list[tuple[str, LoraLayer]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and adapter in module.r
    ]


def patterned_config(
    ranks: Mapping[str, int], *, fan_in_fan_out: bool = False, task_type: str | None = "CAUSAL_LM"
) -> LoraConfig:
    """PEFT's configuration of an adapter of scale 1 whose modules have different ranks.

    Args:
        ranks: Rank by full name of the module.
        fan_in_fan_out: Whether the modules keep their weights transposed, as GPT-2's do.
        task_type: PEFT's name of the task.
    """
    top = max(ranks.values())
    differing = {name: rank for name, rank in ranks.items() if rank != top}
    return LoraConfig(
        task_type=task_type,
        r=top,
        lora_alpha=top,
        target_modules=list(ranks),
        rank_pattern=differing,
        alpha_pattern=dict(differing),
        fan_in_fan_out=fan_in_fan_out,
    )


def train_parts(model: nn.Module, parts: frozenset[str], adapter: str = ADAPTER) -> None:
    """Let gradients flow to the factors in `parts` (`A`, `B`) of `adapter`, and to no other.

    Both together are all that is trained, whatever the method.
    """
    instructions = Instructions(trains=parts)
    for name, parameter in adapter_parameters(model, adapter):
        parameter.requires_grad_(instructions.trains_tensor(name))
