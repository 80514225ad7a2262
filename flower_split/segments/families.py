"""The model families that are exact when they are cut, one declared entry each.

Other packages add families by the entry-point group `flower_split.families`::

    [project.entry-points."flower_split.families"]
    olmo = "my_package.families:OLMO"

The name is the `model_type`; what it leads to is a `Family`, or a function without arguments that
returns one. Silos and trunk need the package alike.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from flower_split.errors import ConfigError, UnsupportedFamilyError
from flower_split.plugins import PluginTable

GROUP = "flower_split.families"


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is peculiar to a family of stock models."""

    model_type: str
    """`config.model_type`."""
    after: tuple[str, ...] = ("norm",)
    """Names of the base model's modules that compute after the layers. The head is found by
    itself; every other module outside the layers is taken to compute before them."""
    returns_tuple: bool = False
    """Whether its layers return a tuple."""
    mixes_rows: bool = False
    """Whether every row of a batch is computed for itself and from left to right, so that rows of
    several silos can share one, padded on the right."""


def _entries() -> dict[str, Family]:
    found = [
        *(
            Family(model_type=name, mixes_rows=True)
            for name in (
                "cohere",
                "gemma",
                "gemma2",
                "gemma3_text",
                "granite",
                "llama",
                "mistral",
                "olmo2",
                "phi3",
                "qwen2",
                "qwen3",
                "smollm3",
                "stablelm",
                "starcoder2",
            )
        ),
        # Experts compute tokens of all rows together.
        Family(model_type="mixtral"),
        Family(model_type="qwen3_moe"),
        Family(model_type="gpt2", after=("ln_f",), mixes_rows=True),
        Family(model_type="gpt_neox", after=("final_layer_norm",), mixes_rows=True),
        Family(model_type="opt", after=("final_layer_norm", "project_out"), mixes_rows=True),
        Family(model_type="phi", after=("final_layernorm",), mixes_rows=True),
        *(
            Family(model_type=name, after=("ln_f",), returns_tuple=True, mixes_rows=True)
            for name in ("bloom", "falcon", "gptj", "gpt_neo")
        ),
    ]
    return {family.model_type: family for family in found}


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
        if loaded.model_type != name:
            raise ConfigError(
                f"model family {name!r} of {packages} has the model_type {loaded.model_type!r}: "
                "name the entry point after it"
            )
        return loaded


_PLUGINS = _Plugins()


def register_family(family: Family) -> None:
    """Add a family, or replace its entry.

    Make sure first that it is exact: `check_exact(model, bottom_layers, top_layers, family=family)`
    on a small model whose configuration has no neutral values (scales, soft-capping, windows).
    """
    FAMILIES[family.model_type] = family


def known_family(model_type: str) -> Family | None:
    """The entry of a family, be it ours, registered or a plug-in's; None for an unknown one.

    Raises:
        UnsupportedFamilyError: a plug-in is broken, or several take the name, or one takes ours.
    """
    registered = FAMILIES.get(model_type)
    try:
        if registered is None or model_type in _OWN:
            plugin = _PLUGINS[model_type]
            return registered or plugin
    except KeyError:
        return None
    except ConfigError as error:
        raise UnsupportedFamilyError(str(error)) from error
    return registered


def family_of(config: PreTrainedConfig) -> Family:
    """The family's entry.

    Raises:
        UnsupportedFamilyError: the family is not known to be exact, or its plug-in is broken.
    """
    found = known_family(config.model_type)
    if found is None:
        known = sorted({*FAMILIES, *_PLUGINS.plugins})
        raise UnsupportedFamilyError(
            f"model family {config.model_type!r} is not known to be exact when it is cut; known "
            f"are {', '.join(known)}. To add one, run check_exact(model, bottom_layers, "
            f"top_layers, family=Family(model_type={config.model_type!r}, …)) on a small model "
            "of the family, then register_family(…), or have a package register it in the "
            f"entry-point group {GROUP}"
        )
    return found
