"""The model: which one, where it is cut, and its LoRA adapters."""

from dataclasses import dataclass

from flower_split.config.checks import at_least, in_range, one_of
from flower_split.config.tasks import CAUSAL_LM, Task
from flower_split.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")
AUTOCAST = ("off", "bfloat16")
DELIVERY = ("local", "server")
QUANTIZATIONS = ("none", "nf4", "nf4-double", "int8", "torchao-int8")
ATTENTION = ("auto", "sdpa", "eager")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model is trained, and how its weights are held."""

    name: str
    """A local folder, a package resource `package:folder`, or a Hugging Face model id."""
    revision: str = ""
    """Commit, tag or branch on the hub; empty for the default branch."""
    task: str = CAUSAL_LM
    """What is learned: one of `TASKS`; see [tasks.md](tasks.md)."""
    labels: tuple[str, ...] = ()
    """Names of the labels that a classifier tells apart, in the order of their ids; one alone for a
    reward model, see [tasks.md](tasks.md)."""
    dtype: str = "float32"
    """The silo's weights and activations, and the trunk's where `trunk.dtype` is empty: one of
    `DTYPES`. Adapters are float32 in any case; see [precision.md](precision.md)."""
    attention: str = "auto"
    """Attention implementation: one of `ATTENTION`; `auto` is `sdpa` where the model has it."""
    quantization: str = "none"
    """How both parties hold the weights of the layers' linear modules: one of `QUANTIZATIONS`. By
    bitsandbytes `nf4` and `nf4-double` are QLoRA's, and `int8` is LLM.int8; `torchao-int8` is
    torchao's, of weights alone; see [precision.md](precision.md)."""
    delivery: str = "local"
    """Where a silo has its part of the model from: one of `DELIVERY`. With `server` it needs
    neither the checkpoint nor the hub; see [delivery.md](delivery.md)."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("model.name must name a folder or a hub model; it is empty")
        self.as_task()
        one_of("model.dtype", self.dtype, DTYPES)
        one_of("model.attention", self.attention, ATTENTION)
        one_of("model.quantization", self.quantization, QUANTIZATIONS)
        one_of("model.delivery", self.delivery, DELIVERY)

    def as_task(self) -> Task:
        """The task, by which loaders choose the stock class.

        Raises:
            ConfigError: the labels do not fit the task.
        """
        return Task(name=self.task, labels=self.labels)


@dataclass(frozen=True, kw_only=True)
class CutConfig:
    """Where the model is cut, in layers (run-config section `split`)."""

    bottom_layers: int = 1
    """Layers the silo holds after the embeddings; 0 keeps the embeddings only."""
    top_layers: int = 1
    """Layers the silo holds before the head; 0 keeps final norm and head only."""
    max_bottom_layers: int = 0
    """Most layers after the embeddings that a silo may choose to hold, by `bottom-layers` of its
    node config, `split.bottom-layers` being the fewest; 0 leaves no choice; see
    [cuts.md](cuts.md)."""
    max_top_layers: int = 0
    """Most layers before the head that a silo may choose to hold, by `top-layers` of its node
    config, `split.top-layers` being the fewest; 0 leaves no choice."""
    bottoms: tuple[int, ...] = ()
    """Bottom layers of the silos in turn, by their `partition-id`: for simulations, whose silos
    have no `bottom-layers` of their own; empty for `bottom_layers`."""
    tops: tuple[int, ...] = ()
    """Top layers of the silos in turn, as `bottoms`; empty for `top_layers`."""

    def __post_init__(self) -> None:
        at_least("split.bottom-layers", self.bottom_layers, 0)
        at_least("split.top-layers", self.top_layers, 0)
        for end, fewest, most, turns in (
            ("bottom", self.bottom_layers, self.max_bottom_layers, self.bottoms),
            ("top", self.top_layers, self.max_top_layers, self.tops),
        ):
            at_least(f"split.max-{end}-layers", most, 0)
            if 0 < most < fewest:
                raise ConfigError(
                    f"split.max-{end}-layers {most} is less than split.{end}-layers {fewest}, the "
                    "fewest that a silo holds: raise it, or set it to 0, which leaves no choice"
                )
            for chosen in turns:
                at_least(f"split.{end}s", chosen, 0)
                if not fewest <= chosen <= max(fewest, most):
                    raise ConfigError(
                        f"split.{end}s has {chosen}, and silos may hold {_between(fewest, most)}: "
                        f"change it, or set split.{end}-layers to the fewest and "
                        f"split.max-{end}-layers to the most"
                    )

    @property
    def most_bottom(self) -> int:
        """Bottom layers of the silo that holds most."""
        return max(self.bottom_layers, self.max_bottom_layers)

    @property
    def most_top(self) -> int:
        """Top layers of the silo that holds most."""
        return max(self.top_layers, self.max_top_layers)

    @property
    def leaves_choice(self) -> bool:
        """Whether a silo may hold other layers than another."""
        return (self.most_bottom, self.most_top) != (self.bottom_layers, self.top_layers)

    def fixed(self, bottom: int, top: int) -> "CutConfig":
        """The cut of a silo that has chosen, which leaves no choice.

        Raises:
            ConfigError: it may not choose so.
        """
        for end, chosen, fewest, most in (
            ("bottom", bottom, self.bottom_layers, self.max_bottom_layers),
            ("top", top, self.top_layers, self.max_top_layers),
        ):
            if not fewest <= chosen <= max(fewest, most):
                raise ConfigError(
                    f"the node config has {end}-layers {chosen}, and silos of this run may hold "
                    f"{_between(fewest, most)} (split.{end}-layers to split.max-{end}-layers): "
                    "change it, or leave it out for the fewest"
                )
        return CutConfig(bottom_layers=bottom, top_layers=top)


def layers_text(fewest: int, most: int) -> str:
    """How many layers silos hold, in words."""
    return str(fewest) if most <= fewest else f"{fewest} to {most}"


def _between(fewest: int, most: int) -> str:
    return f"{fewest} only" if most <= fewest else f"{fewest} to {most}"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The LoRA adapters, in PEFT's own terms (Hu et al. 2021, arXiv:2106.09685)."""

    r: int = 8
    """Rank of the update that an adapter makes."""
    alpha: float = 16.0
    """Scale: the update is `alpha / r * B @ A` (`alpha / sqrt(r)` with `rslora`)."""
    dropout: float = 0.0
    """Dropout probability on the input of every adapter."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Names of the modules that get an adapter, or `all-linear`."""
    rslora: bool = False
    """Rank-stabilised scaling (Kalajdzievski 2023, arXiv:2312.03732)."""
    max_r: int = 64
    """Largest rank that a silo may choose by `lora-r` of its node config, where the strategy takes
    mixed ranks; `r` itself is allowed in any case."""

    ranks: tuple[int, ...] = ()
    """Ranks of the silos in turn, by their `partition-id`: for simulations, whose silos have no
    `lora-r` of their own; empty for `r`."""
    alphas: tuple[float, ...] = ()
    """Alphas of the silos in turn, as `ranks`; empty for `alpha`."""

    def __post_init__(self) -> None:
        for rank in self.ranks:
            at_least("lora.ranks", rank, 1)
            if rank > max(self.r, self.max_r):
                raise ConfigError(
                    f"lora.ranks has {rank}, more than lora.max-r {self.max_r}: lower it, or raise "
                    "lora.max-r"
                )
        for alpha in self.alphas:
            in_range("lora.alphas", alpha, 0.0, 1e6, open_low=True)
        at_least("lora.r", self.r, 1)
        at_least("lora.max-r", self.max_r, 1)
        in_range("lora.alpha", self.alpha, 0.0, 1e6, open_low=True)
        in_range("lora.dropout", self.dropout, 0.0, 0.99)
        if isinstance(self.target_modules, str):
            raise ConfigError(
                f"lora.target-modules is the text {self.target_modules!r} where names are "
                f"expected, one by one: write ({self.target_modules!r},)"
            )
        if not self.target_modules or not all(self.target_modules):
            raise ConfigError(
                "lora.target-modules must name at least one module, or be 'all-linear'"
            )
