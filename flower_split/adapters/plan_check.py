"""Whether a client model's adapter is that of the session's plan, as PEFT's settings tell."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from torch import nn

from flower_split.adapters.client_adapter import adapters_of, tuner_layers
from flower_split.adapters.plan import ADAPTER
from flower_split.config.peft import LORA
from flower_split.errors import AdapterError


def check_plan(model: nn.Module, text: str, shown: Mapping[str, object]) -> None:
    """Raise `AdapterError` unless the client model's adapter is the session's, as `shown` has it.

    Args:
        model: The client model.
        text: What the session was opened with; empty for none.
        shown: Its fields.
    """
    if not text:
        return
    modules = shown.get("modules")
    if not isinstance(modules, list):
        return
    held = {
        name
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
        or isinstance(module, BaseTunerLayer)
    }
    wanted = {name for name in modules if name in held}
    copies = tuple(
        f"{n}." for n, m in model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)
    )
    layers = {
        name: layer
        for name, layer in tuner_layers(model)
        if ADAPTER in adapters_of(layer) and not name.startswith(copies)
    }
    if wanted != layers.keys():
        differing = sorted(wanted ^ layers.keys())
        raise AdapterError(
            f"the client model has an adapter {ADAPTER!r} on {len(layers)} modules, and the "
            f"session's plan on {len(wanted)} of those that it holds (first difference: "
            f"{differing[0]}). Wrap it with flower_split.wrap(client_model, plan), or with "
            "get_peft_model and the same settings"
        )
    _check_settings(model, shown)
    for name, layer in layers.items():
        if not isinstance(layer, LoraLayer):
            continue
        found = {"r": layer.r[ADAPTER], "alpha": float(layer.lora_alpha[ADAPTER])}
        for key, value in found.items():
            told = shown.get(key)
            if isinstance(told, int | float) and float(told) != float(value):
                raise AdapterError(
                    f"{name} has an adapter of {key} {value:g}, and the session's plan {told:g}: "
                    "wrap the client model with the plan that the session was opened with"
                )
    _check_trunks(model, shown, [name for name in modules if name not in held])


_ELSEWHERE = {
    *("task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path"),
    *("revision", "inference_mode", "runtime_config", "megatron_config", "megatron_core"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
    *("trainable_token_indices", "ensure_weight_tying", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config"),
}
"""LoRA settings that are checked by the layers, or are none of what the trunk computes."""
_BY_PART = {"feedforward_modules", "modules_to_save", "save_projection"}
"""Settings of other methods that name modules of a part, or what is written to a file."""
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal")
"""Starts of an adapter that leave the base weights as they are."""


def _check_settings(model: nn.Module, shown: Mapping[str, object]) -> None:
    """Raise `AdapterError` unless the trunk's layers compute by the client model's settings."""
    config = getattr(model, "peft_config", {}).get(ADAPTER)
    if config is None:
        return
    _compare("method", getattr(config.peft_type, "value", None), shown.get("method", LORA))
    if not isinstance(config, LoraConfig):
        _check_fields(config, shown)
        return
    if (layers := tuner_layers(model)) and not isinstance(layers[0][1], LoraLayer):
        return
    # AdaLoRA's has no default without a schedule, which is checked below
    plain = LoraConfig() if type(config) is LoraConfig else type(config)(total_step=1)  # type: ignore[call-arg]
    told = {key.removeprefix("peft."): v for key, v in shown.items() if key.startswith("peft.")}
    if "method" not in shown:
        told = {"lora_dropout": shown.get("dropout"), "use_rslora": shown.get("rslora")}
    for field in fields(config):
        name, own = field.name, getattr(config, field.name)
        expected = told.get(name)
        if expected is None:
            expected = getattr(plain, name, None)
        if name == "init_lora_weights":
            fits = own == expected or (own in _PLAIN_STARTS and expected in _PLAIN_STARTS)
        elif name == "modules_to_save":
            fits = not own or bool(shown.get("copies")) or _outside_layers(model, own)
        elif name in ("r", "lora_alpha") and "method" in shown:
            fits = own == expected
        else:
            fits = name in _ELSEWHERE or own == expected or (not own and not expected)
        if not fits:
            raise _another(name, own, expected)


def _check_fields(config: PeftConfig, shown: Mapping[str, object]) -> None:
    """Raise `AdapterError` unless a config of another method than LoRA is the plan's."""
    for field in fields(config):
        name = field.name
        if name in _ELSEWHERE or name in _BY_PART or name.startswith("init"):
            continue
        default = field.default_factory() if callable(field.default_factory) else field.default
        _compare(name, getattr(config, name), shown.get(f"peft.{name}", default))


def _compare(name: str, own: object, expected: object) -> None:
    """Raise `AdapterError` unless both are the same in the text of a plan; nothing is as None."""
    if (own or expected) and _plain(own) != _plain(expected):
        raise _another(name, own, expected)


def _plain(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=lambda one: sorted(map(str, one)))


def _another(name: str, own: object, expected: object) -> AdapterError:
    return AdapterError(
        f"the client model's adapter has {name}={own!r}, and the trunk's has {expected!r}: wrap "
        "the client model with flower_split.wrap(client_model, plan), or with get_peft_model and "
        "the settings of the session's plan; any settings work with a frozen trunk, which has no "
        "adapter"
    )


def _check_trunks(model: nn.Module, shown: Mapping[str, object], modules: Sequence[str]) -> None:
    """Raise `AdapterError` unless the client model's settings mean the plan on the trunk's modules.

    Args:
        model: The client model.
        shown: Fields of the plan.
        modules: Full names of the trunk's modules with an adapter in the plan.
    """
    config = getattr(model, "peft_config", {}).get(ADAPTER)
    if type(config) is not LoraConfig or config.target_parameters:
        return
    told: dict[str, Any] = {key.removeprefix("peft."): value for key, value in shown.items()}
    ranks, alphas = told.get("rank_pattern") or {}, told.get("alpha_pattern") or {}
    r, alpha = told.get("r"), told.get("lora_alpha", told.get("alpha"))
    for name in modules:
        meant = (
            bool(check_target_module_exists(config, name)),
            _patterned(config.rank_pattern, name, config.r),
            float(_patterned(config.alpha_pattern, name, config.lora_alpha)),
        )
        wanted = (True, _patterned(ranks, name, r), _patterned(alphas, name, alpha))
        if any(
            other is not None and own != other for own, other in zip(meant, wanted, strict=True)
        ):
            raise AdapterError(
                f"by the client model's settings {name}, which is the trunk's, has "
                + (f"r {meant[1]} and alpha {meant[2]:g}" if meant[0] else "no adapter")
                + f", and r {wanted[1]} and alpha {wanted[2]} by the session's plan: wrap the "
                "client model with flower_split.wrap(client_model, plan), or with get_peft_model "
                "and the settings of the session's plan"
            )


def _patterned(pattern: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """What PEFT takes for the module `name`."""
    held = pattern or {}
    return held.get(get_pattern_key(list(held), name), default)


def _outside_layers(model: nn.Module, saved: Sequence[str]) -> bool:
    """Whether all modules that are trained whole are the silo's, before and after the layers."""
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
    names = {name for name, module in model.named_modules() if any(module is t for t in tables)}
    return all(any(own.rpartition(".")[2] == one for own in names) for one in saved)
