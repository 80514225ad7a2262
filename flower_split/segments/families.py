"""The model families that are exact when they are cut, one declared entry each."""

from dataclasses import dataclass

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
    "mixtral",
    "olmo2",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "stablelm",
    "starcoder2",
    "phi3",
):
    register_family(Family(model_type=_name))
register_family(Family(model_type="gpt2", after=("ln_f",)))
register_family(Family(model_type="gpt_neox", after=("final_layer_norm",)))
register_family(Family(model_type="phi", after=("final_layernorm",)))
register_family(Family(model_type="opt", after=("final_layer_norm", "project_out")))
for _name in ("bloom", "falcon", "gptj", "gpt_neo"):
    register_family(Family(model_type=_name, after=("ln_f",), returns_tuple=True))
