"""The model families that are exact when they are cut, one declared entry each.

Other packages add families by the entry-point group `flower_split.families`::

    [project.entry-points."flower_split.families"]
    olmo = "my_package.families:OLMO"

The name is the `model_type`, or for another task than `causal-lm` that and the task, as in
`bert/masked-lm`; what it leads to is a `Family`, or a function without arguments that
returns one. Silos and trunk need the package alike.
"""

from dataclasses import dataclass
from typing import Any

from flower_split.config.tasks import (
    CAUSAL_LM,
    MASKED_LM,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
)
from flower_split.errors import ConfigError, UnsupportedFamilyError
from flower_split.plugins import PluginTable

GROUP = "flower_split.families"


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is peculiar to a family of stock models."""

    model_type: str
    """`config.model_type`."""
    after: tuple[str, ...] = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "project_out")
    """Names of the base model's modules that compute after the layers. The head is found by
    itself; every other module outside the layers is taken to compute before them."""
    returns_tuple: bool = False
    """Whether its layers return a tuple."""
    mixes_rows: bool = False
    """Whether every row of a batch is computed for itself and from left to right, so that rows of
    several silos can share one, padded on the right."""
    task: str = CAUSAL_LM
    """What its models are for; `after` depends on it."""
    caches: bool = True
    """Whether a cache of keys and values, or of states, can be filled by two parties. Without one
    a text is generated with `use_cache=False`."""

    @property
    def key(self) -> str:
        """Its name in the table of families."""
        return family_key(self.model_type, self.task)


def family_key(model_type: str, task: str = CAUSAL_LM) -> str:
    """Name of a family: its `model_type`, with the task where that is not the usual one."""
    return model_type if task == CAUSAL_LM else f"{model_type}/{task}"


_MIXING = (
    *(
        "cohere",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
    ),
    *("olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2"),
)


_RETURNING = ("bloom", "falcon", "gptj", "gpt_neo")
_ENCODERS = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
_DECODERS = (
    *("bloom", "gemma", "gemma2", "gpt2", "gpt_neo", "gpt_neox", "llama", "mistral"),
    *("phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2"),
)
_HEADED = {
    SEQUENCE_CLASSIFICATION: (*_ENCODERS, *_DECODERS, "gptj", "opt"),
    TOKEN_CLASSIFICATION: (*_ENCODERS, *_DECODERS),
    MASKED_LM: _ENCODERS,
}
"""Model types by task, which the test suite proves too."""
_HEAD_NAMES = (
    *("classifier", "cls", "generator_predictions", "lm_head", "pooler", "pre_classifier"),
    *("score", "vocab_layer_norm", "vocab_transform"),
)


def _entries() -> dict[str, Family]:
    """Families that the test suite proves, so that no start has to; and those that mix rows."""
    found = [
        *(Family(model_type=name, mixes_rows=True) for name in _MIXING),
        *(Family(model_type=name, returns_tuple=True, mixes_rows=True) for name in _RETURNING),
        # Experts compute tokens of all rows together.
        *(Family(model_type=name) for name in ("mixtral", "qwen3_moe")),
    ]
    for task, types in _HEADED.items():
        found += [
            Family(
                model_type=name,
                task=task,
                after=(*Family(model_type=name).after, *_HEAD_NAMES),
                returns_tuple=name in _RETURNING,
            )
            for name in types
        ]
    return {family.key: family for family in found}


_OWN = _entries()
FAMILIES = dict(_OWN)
"""Families by `model_type`: flower_split's own, and those of `register_family`. Plug-ins' come on
top."""


class _Plugins(PluginTable[Family]):
    """The families of other packages, none of which may take the name of one of ours."""

    def __init__(self) -> None:
        super().__init__(GROUP, _OWN, key="model family", noun="model family")

    def checked(self, name: str, loaded: Any, packages: str) -> Family:
        """The family itself, or the one that a function returns."""
        if not isinstance(loaded, Family) and callable(loaded):
            try:
                loaded = loaded()
            except Exception as error:
                raise ConfigError(
                    f"model family {name!r} of {packages} cannot be made: "
                    f"{type(error).__name__}: {error}"
                ) from error
        if not isinstance(loaded, Family):
            raise ConfigError(
                f"model family {name!r} of {packages} must be a Family of flower_split.segments, "
                f"or a function that returns one, not a {type(loaded).__name__}"
            )
        if loaded.key != name:
            raise ConfigError(
                f"model family {name!r} of {packages} has the model_type {loaded.key!r}: "
                "name the entry point after it"
            )
        return loaded


_PLUGINS = _Plugins()


def register_family(family: Family) -> None:
    """Add a family, or replace its entry.

    Make sure first that it is exact: `check_exact(model, bottom_layers, top_layers, family=family)`
    on a small model whose configuration has no neutral values (scales, soft-capping, windows).
    """
    FAMILIES[family.key] = family


def known_family(model_type: str, task: str = CAUSAL_LM) -> Family | None:
    """The entry of a family, be it ours, registered or a plug-in's; None for an unknown one.

    Raises:
        UnsupportedFamilyError: a plug-in is broken, or several take the name, or one takes ours.
    """
    key = family_key(model_type, task)
    registered = FAMILIES.get(key)
    try:
        if registered is None or key in _OWN:
            plugin = _PLUGINS[key]
            return registered or plugin
    except KeyError:
        return None
    except ConfigError as error:
        raise UnsupportedFamilyError(str(error)) from error
    return registered
