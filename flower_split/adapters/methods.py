"""Methods: PEFT's adapter methods by name, and what a run may choose of their configs."""

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

import peft
from peft import AdaLoraConfig, PeftConfig, PromptTuningInit
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from flower_split.adapters.notices import without_peft_notices
from flower_split.adapters.typing_keys import typed, typing_hints
from flower_split.config.conflicts import of_bounds
from flower_split.config.model import LoraSettings
from flower_split.config.peft import ADALORA, LORA, PeftSettings
from flower_split.config.problems import nearest, raise_problems
from flower_split.config.sections import SplitConfig
from flower_split.config.tasks import CAUSAL_LM
from flower_split.errors import ConfigError

_BANK = "trains one set of tensors for all layers, and no party holds all layers"

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "ADAMSS": "moves its budget between modules by scores of the whole model, and no party has "
        "all",
        "ADAPTION_PROMPT": "counts the layers of the whole model, and no party holds them all",
        "CPT": "computes a loss of its own, by kinds of tokens that a run's data does not have",
        "FROD": "decomposes the weights of all layers together, and no party has all",
        "LILY": _BANK,
        "MULTITASK_PROMPT_TUNING": "needs a task id with every row, which a run's data has not",
        "OSF": "projects every gradient by a decomposition of the weights, which the sessions of a "
        "trunk have in common",
        "POLY": "needs a task id with every batch, which is not sent to the trunk",
        "PVERA": "draws noise in every layer, so that a run cannot be that of the uncut model",
        "SHADOW": "runs a second model beside all layers, and no party holds all layers",
        "SHIRA": "keeps positions of weights in whole numbers, of which there is no average",
        "SUPERTUNING": "keeps positions of weights in whole numbers, of which there is no average",
        "TINYLORA": _BANK,
        "UNILORA": _BANK,
        "VBLORA": _BANK,
        "XLORA": "mixes adapters by a pass through the whole model",
    }
)
"""Methods of PEFT that a cut model does not take, and why."""

PREFIXES = frozenset({"CARTRIDGE", "PREFIX_TUNING"})
"""Methods that train keys and values which every layer begins with."""

PROMPTS = PREFIXES | {"PROMPT_TUNING", "P_TUNING"}
"""Methods that train what comes before a row, in an encoder that is the silo's."""

MODEL_SIZES = frozenset(
    {"num_attention_heads", "num_layers", "num_transformer_submodules", "token_dim"}
)
"""Fields of a prompt's config that PEFT reads off the model."""

_SET_BY_MODEL = MODEL_SIZES | {"modules_to_save"}
"""The same, and one beside the prompt."""

INITS = (True, False, "gaussian", "olora", "orthogonal", "pissa")
"""LoRA's initialisations that need nothing but the layer's own weights and the run's seed."""

RESIDUAL_INITS = frozenset({"olora", "pissa"})
"""Those that take what the adapter begins with out of the layer's own weights."""

SET_BY_RUN = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "fan_in_fan_out",
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
        "save_projection",
        "task_type",
    }
)
"""Fields that the run sets."""

LORA_KEYS = MappingProxyType(
    {
        "lora_alpha": "lora.alpha",
        "lora_dropout": "lora.dropout",
        "r": "lora.r",
        "target_modules": "lora.target-modules",
        "use_rslora": "lora.rslora",
    }
)
"""Fields of PEFT's `LoraConfig` that have keys of their own."""

_LORA_TAKES = frozenset(
    {
        "alpha_pattern",
        "bias",
        "ensure_weight_tying",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_bias",
        "modules_to_save",
        "rank_pattern",
        "trainable_token_indices",
        "use_dora",
    }
)
"""Fields of `LoraConfig` that a cut model takes beside those; PEFT's others need data, tasks or
tokens that the trunk does not have, or layers that are not the model's."""


_ADALORA_TAKES = frozenset(
    {
        "beta1",
        "beta2",
        "deltaT",
        "exclude_modules",
        "init_r",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "orth_reg_weight",
        "target_modules",
        "target_r",
        "tfinal",
        "tinit",
        "total_step",
    }
)
"""Fields of `AdaLoraConfig` that a cut model takes; it has LoRA's others from its parent class."""


_ON_ALL = frozenset({"ADALORA", "BEFT", "FOURIERFT", "IA3", "LN_TUNING", "ROAD", "WAVEFT"})
_ON_BITSANDBYTES = _ON_ALL | {"BOFT", "HIRA", "MISS", "OFT", "VERA"}

ON_QUANTIZED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "nf4": _ON_BITSANDBYTES | {"C3A", "GRALORA"},
        "nf4-double": _ON_BITSANDBYTES | {"C3A", "GRALORA"},
        "int8": _ON_BITSANDBYTES | {"LOHA", "LOKR"},
        "torchao-int8": _ON_ALL | {"C3A", "GRALORA", "LOHA", "LOKR", "RANDLORA"},
    }
)
"""Methods beside plain LoRA, by quantization, that train on quantized weights as PEFT does in the
uncut model. With the others PEFT fails, or computes with the stored codes as if they were
weights."""


def takes_quantized(settings: PeftSettings, kind: str) -> bool:
    """Whether a run of these settings can have weights of quantization `kind`."""
    return settings.is_plain or settings.type in ON_QUANTIZED[kind]


def method_names() -> tuple[str, ...]:
    """Every method that the installed PEFT knows, sorted."""
    return tuple(sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING))


def working_methods() -> tuple[str, ...]:
    """Those of `method_names` that a cut model takes."""
    return tuple(name for name in method_names() if name not in REFUSED)


def method_keys(method: str) -> dict[str, Any]:
    """The fields of PEFT's config that a run may set by `peft.<field>`, with their types."""
    kind = config_class(method)
    hints = typing_hints(kind)
    held = {field.name for field in fields(kind)} - SET_BY_RUN
    if method == LORA:
        held &= _LORA_TAKES
    if method == ADALORA:
        held &= _ADALORA_TAKES
    if method in PROMPTS:
        held -= _SET_BY_MODEL
    return {name: hints[name] for name in hints if name in held}


def config_class(method: str) -> type[PeftConfig]:
    """PEFT's config of a method.

    Raises:
        ConfigError: PEFT knows no such method, or a cut model does not take it.
    """
    names = method_names()
    if method not in names:
        raise ConfigError(
            f"peft.type {method!r} is not known{nearest(method, names)}: PEFT {peft.__version__} "
            f"has, and a cut model takes, {', '.join(working_methods())}"
        )
    if method in REFUSED:
        raise ConfigError(
            f"peft.type {method} {REFUSED[method]}: it cannot be used on a cut model. Those that "
            f"can are {', '.join(working_methods())}"
        )
    found = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return found[method]


def method_problems(config: SplitConfig) -> list[str]:
    """What is wrong with the method that a run config chooses; nothing when it can be trained."""
    if config.peft.type in PROMPTS and config.model.task != CAUSAL_LM:
        return [
            f"peft.type {config.peft.type} puts a prompt before causal language models, and "
            f"model.task is {config.model.task!r}: choose another method"
        ]
    try:
        made = method_config(config.lora, config.peft)
    except ConfigError as error:
        return [*error.problems]
    if isinstance(made, AdaLoraConfig):
        found = _rank_problems(made, config)
        if found:
            return found
    if config.trunk.shares_adapter and not config.peft.is_plain:
        return [
            f"trunk.shares-adapter is for plain LoRA, and the run has {config.peft}: turn it off"
        ]
    kind = config.model.quantization
    if kind != "none" and not takes_quantized(config.peft, kind):
        return [
            f"model.quantization {kind!r} is for plain LoRA and "
            f"{', '.join(sorted(ON_QUANTIZED[kind]))}, and the run has {config.peft}: leave it at "
            "'none'"
        ]
    begins = getattr(made, "init_lora_weights", None)
    if config.split.leaves_choice and begins in RESIDUAL_INITS:
        return [
            f"peft.init-lora-weights {begins!r} changes the layers' weights, and with a choice of "
            "cuts (split.max-bottom-layers, split.max-top-layers) each cut would need a copy of "
            "the trunk's: choose another start, or set both bounds to 0"
        ]
    bias = getattr(made, "bias", "none")
    if bias != "none" and config.trunk.adapters != "frozen":
        return [
            f"peft.bias {bias!r} trains the layers' own biases, which the sessions of a trunk have "
            "in common: set trunk.adapters to 'frozen', or leave peft.bias out"
        ]
    return _prompt_problems(config, made) if config.peft.type in PROMPTS else []


def _prompt_problems(config: SplitConfig, made: PeftConfig) -> list[str]:
    if config.trunk.adapters != "frozen":
        return [
            f"peft.type {config.peft.type} trains a prompt, which is the silo's, and nothing in "
            "the trunk: set trunk.adapters to 'frozen'"
        ]
    begins, known = getattr(made, "prompt_tuning_init", None), [*PromptTuningInit]
    if begins is not None and begins not in known:
        return [
            f"peft.prompt-tuning-init is {begins!r}, expected one of "
            f"{', '.join(one.value for one in known)}"
        ]
    count = int(made.num_virtual_tokens)  # type: ignore[attr-defined]
    return of_bounds(config.train, config.trunk, before=count)


def _rank_problems(made: AdaLoraConfig, config: SplitConfig) -> list[str]:
    """What keeps AdaLoRA's ranks from being allocated as PEFT does in the uncut model."""
    found = list[str]()
    if config.trunk.adapters == "shared":
        found.append(
            "peft.type ADALORA masks by the importances of one silo, and trunk.adapters 'shared' "
            "has one adapter for all: set trunk.adapters to 'federated' or 'frozen'"
        )
    if made.target_r >= made.init_r:
        found.append(
            f"peft.target-r {made.target_r} leaves nothing to allocate of peft.init-r "
            f"{made.init_r}: lower it, or use peft.type LORA"
        )
    for name in ("beta1", "beta2"):
        if not 0 < getattr(made, name) < 1:
            found.append(f"peft.{name} is {getattr(made, name)}, expected between 0 and 1")
    for name, least in (("target_r", 1), ("tinit", 0), ("tfinal", 0), ("deltaT", 1)):
        if getattr(made, name) < least:
            key = name.replace("_", "-")
            found.append(f"peft.{key} is {getattr(made, name)}, expected at least {least}")
    told = last_allocation_problem(made, config.train.local_steps, config.num_server_rounds)
    return [*found, told] if told else found


def last_allocation_problem(made: AdaLoraConfig, steps: int, rounds: int) -> str:
    """Why the last allocation of a schedule cannot be made; empty where it can.

    PEFT makes it by the importances of the steps before it.

    Args:
        made: The schedule.
        steps: Of a silo's round; 0 where they are not known.
        rounds: Of the run.
    """
    last = int(made.total_step or 0) - made.tfinal
    if not steps or last % steps or not 0 < last // steps < rounds:
        return ""
    return (
        f"peft.total-step {made.total_step} less peft.tfinal {made.tfinal} is step {last}, the "
        f"first of round {last // steps + 1}: the last allocation goes by the importances of the "
        "steps before it, which begin anew each round. Change peft.tfinal by 1, and have rounds of "
        "several steps"
    )


def method_config(lora: LoraSettings, settings: PeftSettings) -> PeftConfig:
    """PEFT's config for the uncut model, its targets not resolved yet.

    Raises:
        ConfigError: with everything that is wrong with the settings, one a line.
    """
    values = method_values(lora, settings)
    if settings.type in PROMPTS and values.get("num_virtual_tokens", 0) < 1:
        raise ConfigError(
            f"peft.type {settings.type} needs peft.num-virtual-tokens, a whole number of at least 1"
        )
    try:
        with without_peft_notices():
            return config_class(settings.type)(task_type="CAUSAL_LM", **values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"PEFT refuses {settings}: {error}") from error


def method_values(lora: LoraSettings, settings: PeftSettings) -> dict[str, Any]:
    """The fields of PEFT's config that a run sets.

    Raises:
        ConfigError: with everything that is wrong with the settings, one a line.
    """
    kind = config_class(settings.type)
    problems = [] if settings.type == LORA else _unused_lora(lora, settings.type)
    if settings.type == LORA and not settings.is_plain and (lora.ranks or lora.alphas):
        problems.append(
            f"lora.ranks and lora.alphas are for plain LoRA, and the run has {settings}: leave "
            "them empty"
        )
    if settings.type == ADALORA and "total_step" not in settings.options:
        problems.append(
            "peft.total-step is missing: AdaLoRA's schedule needs the optimizer steps of a silo in "
            "the whole run. With train.local-steps it is num-server-rounds times those, without "
            "the key"
        )
    keys, values = method_keys(settings.type), dict[str, Any]()
    for name, value in settings.options.items():
        key = f"peft.{name.replace('_', '-')}"
        try:
            _check_name(settings.type, name, key, keys)
            if name == "init_lora_weights" and value not in INITS:
                raise ConfigError(
                    f"{key} {value!r} needs data, or draws what every party would draw otherwise: "
                    f"use one of {', '.join(map(repr, INITS))}"
                )
            values[name] = typed(key, keys[name], value)
        except ConfigError as error:
            problems.append(str(error))
    raise_problems(problems, "the adapters' method")
    if settings.type == LORA:
        wanted = list(lora.target_modules)
        values |= {
            "r": lora.r,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "use_rslora": lora.rslora,
            "target_modules": "all-linear" if wanted == ["all-linear"] else wanted,
        }
    if "save_projection" in {field.name for field in fields(kind)}:
        values["save_projection"] = False  # they are made anew from the seed wherever they are used
    return values


def _check_name(method: str, name: str, key: str, keys: Mapping[str, Any]) -> None:
    if method == LORA and name in LORA_KEYS:
        raise ConfigError(f"{key} has a key of its own: set {LORA_KEYS[name]}")
    if name in SET_BY_RUN or (method in PROMPTS and name in _SET_BY_MODEL):
        raise ConfigError(f"{key} is set by the run itself: leave it out")
    if name == "modules_to_save" and name not in keys:
        raise ConfigError(
            f"peft.type {method} trains no modules as a whole ({key}), as the head of a classifier "
            "is trained: choose another method"
        )
    if name not in keys:
        valid = sorted(f"peft.{one.replace('_', '-')}" for one in keys)
        raise ConfigError(
            f"unknown key {key!r} for peft.type {method}{nearest(key, valid)}: on a cut model it "
            f"takes {', '.join(valid)}"
        )


def _unused_lora(lora: LoraSettings, method: str) -> list[str]:
    default = LoraSettings()
    set_here = [
        f"lora.{field.name.replace('_', '-')}"
        for field in fields(LoraSettings)
        if field.name != "max_r" and getattr(lora, field.name) != getattr(default, field.name)
    ]
    if not set_here:
        return []
    return [
        f"{', '.join(set_here)} would not be used with peft.type {method}: set the keys of its own "
        "config under 'peft.', and leave these out"
    ]
