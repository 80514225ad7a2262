"""DP-SGD: clipping by example, noise on the gradients, and the ε at which a silo stops."""

from dataclasses import dataclass

from flower_split.config.checks import in_range
from flower_split.config.data import DataConfig
from flower_split.config.model import LoraSettings, ModelConfig
from flower_split.config.peft import LORA, PeftSettings
from flower_split.config.tasks import MASKED_LM
from flower_split.config.training import TrainConfig
from flower_split.config.trunk import TrunkConfig
from flower_split.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DpConfig:
    """DP-SGD on every silo's adapters: (ε, δ) for each example that a silo trains on, see
    [privacy.md](privacy.md). Every step draws its examples, `train.batch-size` x
    `train.accumulation` of them in the mean."""

    noise: float = 0.0
    """Deviation of the noise on the sum of a step's gradients, as a multiple of `clip`; 0 for none.
    0.5 to 2 is usual."""
    clip: float = 0.0
    """Largest L2 norm of an example's gradient over both sides of the cut, to which it is clipped;
    0 where `noise` is. Near the median of the norms."""
    delta: float = 1e-5
    """δ of the guarantee: below 1 over the number of a silo's examples."""
    max_epsilon: float = 0.0
    """ε that no silo goes beyond: it trains no round that would, and the run ends before; 0 for
    any. Where it is set, the silos need the accountant too."""

    def __post_init__(self) -> None:
        in_range("dp.noise", self.noise, 0.0, 1e6)
        in_range("dp.clip", self.clip, 0.0, 1e9)
        in_range("dp.delta", self.delta, 0.0, 0.1, open_low=True)
        in_range("dp.max-epsilon", self.max_epsilon, 0.0, 1e9)
        if (self.noise > 0) != (self.clip > 0):
            raise ConfigError(
                "DP-SGD needs both dp.noise and dp.clip, because noise hides an example only where "
                f"its gradient has a bound: they are {self.noise:g} and {self.clip:g}"
            )
        if self.max_epsilon and not self.noise:
            raise ConfigError(
                "dp.max-epsilon bounds the ε of DP-SGD, and dp.noise is 0: set it, and dp.clip"
            )

    def conflicts(
        self,
        *,
        model: ModelConfig,
        lora: LoraSettings,
        peft: PeftSettings,
        train: TrainConfig,
        trunk: TrunkConfig,
        data: DataConfig,
    ) -> list[str]:
        """Settings under which an example would change more than its clipped gradient, or which
        would not do what they say."""
        if not self.noise:
            return []
        found, dp = list[str](), "DP-SGD (dp.noise)"
        if train.max_grad_norm:
            found.append(
                f"train.max-grad-norm {train.max_grad_norm:g} would clip gradients that have the "
                f"noise of {dp} already, and examples are clipped by dp.clip: set it to 0"
            )
        options = [f"peft.{name.replace('_', '-')}" for name in _UNTOLD & peft.options.keys()]
        if peft.type != LORA or options:
            named = ", ".join(sorted(options)) or f"peft.type {peft.type!r}"
            found.append(
                f"{named}: {dp} has every example's own gradient of linear modules alone; set "
                "peft.type to 'LORA', without DoRA, biases and token indices"
            )
        start = str(peft.options.get("init_lora_weights", "")).lower()
        if start.startswith(STARTS_OF_DATA):
            found.append(
                f"peft.init-lora-weights {start!r} begins with what the silo's examples are like, "
                f"past the noise of {dp}: leave it out"
            )
        if lora.dropout:
            found.append(
                f"lora.dropout {lora.dropout:g} would not be used: {dp} trains without dropout, "
                "whose masks are drawn for whole batches; set it to 0"
            )
        if model.quantization == "int8":
            found.append(
                f"model.quantization 'int8' chooses columns by all rows of a batch, and {dp} rests "
                "on rows that are computed each for itself: set it to 'nf4' or 'none'"
            )
        if model.task == MASKED_LM:
            found.append(
                f"model.task {MASKED_LM!r} draws its masks for whole batches, and {dp} rests on "
                "rows that are computed each for itself: take another task"
            )
        if data.packing:
            found.append(
                f"data.packing puts several examples into a row, and {dp} clips by row: set it to "
                "false"
            )
        if data.long_texts == "split":
            found.append(
                f"data.long-texts 'split' makes several rows of an example, and {dp} would protect "
                "each by itself: set it to 'cut'"
            )
        if trunk.shares_adapter:
            found.append(
                f"trunk.shares-adapter brings the trunk's gradients to silos as sums, and {dp} "
                "clips them by example: set it to false"
            )
        return found


STARTS_OF_DATA = ("eva", "corda", "lora_ga")
"""PEFT's names of starts of an adapter that are computed of data."""
_UNTOLD = {"use_dora", "bias", "lora_bias", "trainable_token_indices", "target_parameters"}
"""Fields of LoRA's config that train what is no linear module, or its bias beside the layer's."""
