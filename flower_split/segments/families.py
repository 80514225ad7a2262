"""The model families that are exact when they are cut, one declared entry each."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

from flower_split.errors import UnsupportedFamilyError


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


FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Add a family, or replace its entry.

    Make sure first that it is exact: `check_exact(model, bottom_layers, top_layers, family=family)`
    on a small model whose configuration has no neutral values (scales, soft-capping, windows).
    """
    FAMILIES[family.model_type] = family


def family_of(config: PreTrainedConfig) -> Family:
    """The family's entry.

    Raises:
        UnsupportedFamilyError: the family is not known to be exact.
    """
    try:
        return FAMILIES[config.model_type]
    except KeyError:
        raise UnsupportedFamilyError(
            f"model family {config.model_type!r} is not known to be exact when it is cut; known "
            f"are {', '.join(sorted(FAMILIES))}. To add one, run check_exact(model, bottom_layers, "
            f"top_layers, family=Family(model_type={config.model_type!r}, …)) on a small model "
            "of the family, then register_family(…)"
        ) from None


for _name in (
    "cohere",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "qwen2",
    "qwen3",
    "smollm3",
    "stablelm",
    "starcoder2",
    "phi3",
):
    register_family(Family(model_type=_name, mixes_rows=True))
for _name in ("mixtral", "qwen3_moe"):  # experts compute tokens of all rows together
    register_family(Family(model_type=_name))
register_family(Family(model_type="gpt2", after=("ln_f",), mixes_rows=True))
register_family(Family(model_type="gpt_neox", after=("final_layer_norm",), mixes_rows=True))
register_family(Family(model_type="phi", after=("final_layernorm",), mixes_rows=True))
register_family(
    Family(model_type="opt", after=("final_layer_norm", "project_out"), mixes_rows=True)
)
for _name in ("bloom", "falcon", "gptj", "gpt_neo"):
    register_family(Family(model_type=_name, after=("ln_f",), returns_tuple=True, mixes_rows=True))


OTHER_HEADS = ("classifier_", "summary_")
"""How the settings of heads begin that classify sequences or tokens, in all families."""


def has_dropout(module: nn.Module, config: PreTrainedConfig) -> bool:
    """Whether anything is dropped or jittered in training mode, as far as can be told.

    Stock models drop out by modules and by functions whose rates are settings. The rates of heads
    that no causal language model has do not count; those of other parts do, wherever these are.
    """
    rates = (
        value
        for name, value in config.to_dict().items()
        if ("drop" in name or "jitter" in name)
        and not name.startswith(OTHER_HEADS)
        and isinstance(value, float | int)
    )
    return any(rates) or any(
        isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0 for part in module.modules()
    )
