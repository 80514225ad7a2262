"""The sections of a run's configuration: frozen, keyword-only, checked where they are made.

Field `learning_rate` of section `train` is the run-config key `train.learning-rate`;
`flower_split.config.run_config` makes the sections from a Flower run config.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flower_split.config.checks import at_least, in_range, one_of
from flower_split.config.conflicts import conflicts
from flower_split.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")
ATTENTION = ("auto", "sdpa", "eager")
CODECS = ("fp32", "bf16", "fp16")
SCHEDULES = ("constant", "linear", "cosine")
TRUNK_ADAPTERS = ("federated", "shared", "frozen")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model is trained, and how its weights are held."""

    name: str
    """A local folder, a package resource `package:folder`, or a Hugging Face model id."""
    revision: str = ""
    """Commit, tag or branch on the hub; empty for the default branch."""
    dtype: str = "float32"
    """Weights and activations: one of `DTYPES`."""
    attention: str = "auto"
    """Attention implementation: one of `ATTENTION`; `auto` is `sdpa` where the model has it."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("model.name must name a folder or a hub model; it is empty")
        one_of("model.dtype", self.dtype, DTYPES)
        one_of("model.attention", self.attention, ATTENTION)


@dataclass(frozen=True, kw_only=True)
class CutConfig:
    """Where the model is cut, in layers (run-config section `split`)."""

    bottom_layers: int = 1
    """Layers the silo holds after the embeddings; 0 keeps the embeddings only."""
    top_layers: int = 1
    """Layers the silo holds before the head; 0 keeps final norm and head only."""

    def __post_init__(self) -> None:
        at_least("split.bottom-layers", self.bottom_layers, 0)
        at_least("split.top-layers", self.top_layers, 0)


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

    def __post_init__(self) -> None:
        at_least("lora.r", self.r, 1)
        in_range("lora.alpha", self.alpha, 0.0, 1e6, open_low=True)
        in_range("lora.dropout", self.dropout, 0.0, 0.99)
        if not self.target_modules or not all(self.target_modules):
            raise ConfigError(
                "lora.target-modules must name at least one module, or be 'all-linear'"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Local training between two aggregations."""

    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    batch_size: int = 8
    """Sequences in a microbatch."""
    accumulation: int = 1
    """Microbatches in an optimizer step."""
    local_epochs: int = 1
    """Passes over the silo's data in a round; not used when `local_steps` is set."""
    local_steps: int = 0
    """Optimizer steps in a round; 0 takes `local_epochs` instead."""
    schedule: str = "constant"
    """Learning-rate schedule over the whole run: one of `SCHEDULES`."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up at the start of the run."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Bound of the global gradient norm over both sides of the cut; 0 does not clip."""
    max_length: int = 256
    """Tokens at which a sequence is cut off."""
    eval_batch_size: int = 16
    """Sequences in an evaluation batch."""

    def __post_init__(self) -> None:
        in_range("train.learning-rate", self.learning_rate, 0.0, 1e3)
        for name in ("batch_size", "accumulation", "local_epochs", "eval_batch_size"):
            at_least(f"train.{name.replace('_', '-')}", getattr(self, name), 1)
        at_least("train.local-steps", self.local_steps, 0)
        at_least("train.warmup-steps", self.warmup_steps, 0)
        at_least("train.max-length", self.max_length, 2)
        one_of("train.schedule", self.schedule, SCHEDULES)
        in_range("train.weight-decay", self.weight_decay, 0.0, 1e3)
        in_range("train.max-grad-norm", self.max_grad_norm, 0.0, 1e9)


@dataclass(frozen=True, kw_only=True)
class WireConfig:
    """How each of the four tensors of a microbatch is encoded: names of `CODECS`."""

    h1: str = "fp32"
    """Bottom's output, silo to trunk."""
    h2: str = "fp32"
    """Trunk's output, trunk to silo."""
    g2: str = "fp32"
    """Gradient of the loss at h2, silo to trunk."""
    g1: str = "fp32"
    """Gradient of the loss at h1, trunk to silo."""

    def __post_init__(self) -> None:
        for hop in ("h1", "h2", "g2", "g1"):
            one_of(f"wire.{hop}", getattr(self, hop), CODECS)


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """The trunk's adapters and the server that hosts it."""

    adapters: str = "federated"
    """One of `TRUNK_ADAPTERS`."""
    host: str = "127.0.0.1"
    """Address the trunk's server binds."""
    port: int = 0
    """Port the trunk's server binds; 0 takes a free one."""
    advertise: str = ""
    """`host:port` that silos are told to connect to; empty for the bound address."""
    max_sessions: int = 64
    """Sessions that may be open at once."""
    max_in_flight: int = 8
    """Microbatches of one session whose activations the trunk keeps."""
    max_message_tokens: int = 65536
    """Bound of `batch x sequence length` of a single microbatch."""
    max_cached_tokens: int = 262144
    """Bound of `rows x tokens` that one session may hold in key-value caches."""

    def __post_init__(self) -> None:
        one_of("trunk.adapters", self.adapters, TRUNK_ADAPTERS)
        in_range("trunk.port", self.port, 0, 65535)
        at_least("trunk.port", self.port, 0)
        for name in ("max_sessions", "max_in_flight", "max_message_tokens", "max_cached_tokens"):
            at_least(f"trunk.{name.replace('_', '-')}", getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where a silo's text comes from and how it becomes training sequences."""

    path: str = ""
    """A `.jsonl` or `.txt` file, or a `module:function` that returns a `datasets.Dataset`."""
    eval_path: str = ""
    """Held-out data like `path`; empty holds out `eval_fraction` of the training data."""
    eval_fraction: float = 0.1
    """Share of the training data held out when `eval_path` is empty."""
    text: str = "text"
    """Field with the text to learn; with `prompt` set, the target text."""
    prompt: str = ""
    """Field with the prompt, which gets no loss; empty for plain language modelling."""
    partitioner: str = "iid"
    """How one data set becomes silos: `iid`, `dirichlet`, `natural`, or `none`."""
    partition_by: str = ""
    """Column for `dirichlet` (label) and `natural` (silo id)."""
    dirichlet_alpha: float = 0.5
    """Concentration of the Dirichlet distribution; smaller is less alike."""
    max_examples: int = 0
    """Examples a silo keeps; 0 keeps all."""

    def __post_init__(self) -> None:
        one_of("data.partitioner", self.partitioner, ("iid", "dirichlet", "natural", "none"))
        if self.partitioner in ("dirichlet", "natural") and not self.partition_by:
            raise ConfigError(
                f"data.partitioner {self.partitioner!r} needs data.partition-by, the column to use"
            )
        in_range("data.eval-fraction", self.eval_fraction, 0.0, 0.9)
        in_range("data.dirichlet-alpha", self.dirichlet_alpha, 0.0, 1e6, open_low=True)
        at_least("data.max-examples", self.max_examples, 0)


@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """Which Flower strategy aggregates, and with which options."""

    name: str = "fedavg"
    """A name of `flower_split.strategies.INNER_STRATEGIES`."""
    fraction_train: float = 1.0
    """Share of the silos that train in a round."""
    fraction_evaluate: float = 1.0
    """Share of the silos that evaluate after a round; 0 skips evaluation."""
    min_nodes: int = 2
    """Silos that must be connected before a round starts."""
    options: dict[str, float] = field(default_factory=dict)
    """Further arguments of the strategy (`strategy.eta`, `strategy.tau`, …)."""

    def __post_init__(self) -> None:
        in_range("strategy.fraction-train", self.fraction_train, 0.0, 1.0, open_low=True)
        in_range("strategy.fraction-evaluate", self.fraction_evaluate, 0.0, 1.0)
        at_least("strategy.min-nodes", self.min_nodes, 1)


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """A whole run's configuration."""

    model: ModelConfig
    split: CutConfig = field(default_factory=CutConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    train: TrainConfig = field(default_factory=TrainConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    num_server_rounds: int = 3
    """Federated rounds."""
    seed: int = 0
    """Seed of everything random: adapters, order of the data, dropout."""
    output_dir: str = ""
    """Folder for adapter, `result.json` and plot; empty writes nothing."""
    round_timeout: float = 3600.0
    """Seconds after which a round goes on without the silos that have not answered."""
    evaluate_initial: bool = True
    """Whether the silos evaluate once before the first round."""
    baseline_alone: bool = False
    """Whether each silo also trains alone, from the same start and for as many rounds."""
    sample_prompt: str = ""
    """Prompt that is continued through the split before and after training; empty for none."""

    def __post_init__(self) -> None:
        at_least("num-server-rounds", self.num_server_rounds, 1)
        at_least("seed", self.seed, 0)
        in_range("round-timeout", self.round_timeout, 0.0, 1e7, open_low=True)
        found = conflicts(self)
        if found:
            raise ConfigError("\n".join(found))

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> "SplitConfig":
        """The configuration that a Flower run config describes.

        Args:
            run_config: `context.run_config` of a ServerApp or ClientApp.

        Raises:
            ConfigError: with every problem of the run config at once, one a line.
        """
        from flower_split.config.run_config import read_run_config

        return read_run_config(run_config)
