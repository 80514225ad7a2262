"""Prompts: the methods that train what comes before a row, in an encoder beside the model.

A prompt encoder is no part of any layer, so that all of it is the silo's. PEFT saves what the
encoder gives, and not the encoder: where that is one table of embeddings, its tensor has PEFT's
name, `prompt_embeddings`; the tensors of an encoder with more in it are named after their places in
`prompt_encoder`, averaged like all others, and what they give is computed when the adapter is
exported.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import Tensor, nn

from flower_split.adapters.methods import MODEL_SIZES, PREFIXES, PROMPTS
from flower_split.errors import AdapterError

EMBEDDINGS = "prompt_embeddings"
"""PEFT's name of what it saves."""
_ENCODER = "prompt_encoder."
_TABLE = "embedding.weight"
_STARTS = ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path")
"""Fields that choose with which values an encoder begins."""


class _CalledError(Exception):
    """PEFT has come to the stock model, and calls it so."""

    def __init__(self, call: Mapping[str, Any]) -> None:
        super().__init__()
        self.call = call


def is_prompt(config: PeftConfig | None) -> bool:
    """Whether an adapter of `config` is one of those that are trained here."""
    return config is not None and config.peft_type in PROMPTS


def prompt_of(model: nn.Module) -> PeftConfig | None:
    """PEFT's config of the prompt that `model` computes with; None where it has none, or where it
    is disabled."""
    config = _active(model)
    if config is None or not (isinstance(model, PeftModel) and model.has_active_enabled_adapter):
        return None
    return config


def _active(model: nn.Module) -> PeftConfig | None:
    """That of the prompt that is active, enabled or not."""
    name = model.active_adapter if isinstance(model, PeftModel) else None
    if not isinstance(model, PeftModel) or not isinstance(name, str):
        return None
    config = model.peft_config.get(name)
    return config if config is not None and config.is_prompt_learning else None


def tokens_before(model: nn.Module) -> int:
    """Virtual tokens that `model` puts before every row it is given, which the logits have too."""
    config = prompt_of(model)
    if config is None or config.peft_type in PREFIXES:
        return 0
    return int(config.num_virtual_tokens)  # type: ignore[attr-defined]


def prefix_tokens(model: nn.Module) -> int:
    """Tokens of the prefix that the caches of `model` may begin with; 0 where it has none."""
    config = _active(model)
    if config is None or config.peft_type not in PREFIXES:
        return 0
    return int(config.num_virtual_tokens)  # type: ignore[attr-defined]


def encoder_parameters(model: nn.Module) -> tuple[nn.Parameter, ...]:
    """The tensors of the prompt encoders of `model`; none where it has none."""
    encoders = getattr(model, "prompt_encoder", None) if isinstance(model, PeftModel) else None
    return () if encoders is None else tuple(encoders.parameters())


def stock_call(model: nn.Module, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """How PEFT calls the stock model inside `model` when `model` is called with `inputs`.

    With a prompt that is with embeddings, a longer mask and longer labels, or with a filled cache;
    they have the graph of the encoder. Without one they are `inputs`.

    Raises:
        AdapterError: the model returns something else than the stock model does.
    """
    config = prompt_of(model)
    if config is None or not isinstance(model, PeftModel):
        return inputs
    if config.peft_type == "CPT":
        raise AdapterError(
            "CPT computes a loss of its own from what the stock model returns, which a pass in "
            "stages leaves out: call the client model itself, and backward of its loss"
        )

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _CalledError(kwargs)

    # PEFT's own code makes the call, whatever it is in this version; nothing is computed of it.
    handle = model.base_model.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        model(**inputs)
    except _CalledError as called:
        return {name: value for name, value in called.call.items() if value is not None}
    finally:
        handle.remove()
    raise AdapterError(
        f"PEFT's {type(model).__name__} did not call the {type(model.base_model).__name__} inside"
    )


def is_frozen(name: str) -> bool:
    """Whether a prompt's tensor of that name is kept as it began: CARTRIDGE's first tokens."""
    return name == f"{_ENCODER}frozen_embedding"


def prompt_tensors(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The tensors of a prompt encoder by their names in an adapter's state, in model order."""
    encoders: Any = model.prompt_encoder
    held: dict[str, nn.Parameter] = dict(encoders[adapter].named_parameters())
    if set(held) == {_TABLE}:
        return {EMBEDDINGS: held[_TABLE]}
    return {_ENCODER + name: parameter for name, parameter in held.items()}


def starts_from_words(values: Mapping[str, Any]) -> bool:
    """Whether an encoder begins with rows of the model's own embeddings."""
    return bool(values.get("prompt_tuning_init", "RANDOM") != "RANDOM")


def at_random(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of a config whose encoder's tensors are overwritten: it needs no words."""
    left_out = (*_STARTS, "tokenizer_kwargs")
    return {name: value for name, value in values.items() if name not in left_out}


def resolved_values(values: Mapping[str, Any], config: PeftConfig) -> dict[str, Any]:
    """`values` with what PEFT has read off the model's configuration into `config`."""
    sizes = MODEL_SIZES | {"encoder_hidden_size"}
    held = [field.name for field in fields(config)]
    found = {name: getattr(config, name) for name in held if name in sizes}
    return {**values, **{name: value for name, value in found.items() if value is not None}}


def embeddings_name(model: nn.Module, config: PeftConfig) -> str:
    """Full name of the module that PEFT takes the words from."""
    wrapped = get_peft_model(model, config)
    words = wrapped.word_embeddings
    return str(next(name for name, module in model.named_modules() if module is words))


def exported(state: Mapping[str, Tensor], config: PeftConfig) -> dict[str, Tensor]:
    """What PEFT saves of an adapter whose encoder has the tensors of `state`.

    Args:
        state: Named as by `prompt_tensors`.
        config: For the uncut model, its sizes resolved.
    """
    if set(state) == {EMBEDDINGS}:
        return dict(state)
    kinds: Mapping[Any, Any] = PEFT_TYPE_TO_TUNER_MAPPING
    encoder = kinds[config.peft_type](config).eval()
    encoder.load_state_dict({name.removeprefix(_ENCODER): t for name, t in state.items()})
    with torch.no_grad():
        count = int(config.num_virtual_tokens)  # type: ignore[attr-defined]
        return {EMBEDDINGS: encoder(torch.arange(count)[None])[0].clone()}
