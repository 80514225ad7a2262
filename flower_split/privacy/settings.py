"""The settings of DP-SGD, which a silo and the trunk agree on in the handshake."""

from dataclasses import dataclass

from flower_split.config.checks import at_least, in_range
from flower_split.config.privacy import DpConfig
from flower_split.config.training import TrainConfig
from flower_split.errors import ConfigError

MOST_EXPECTED = 1 << 24
"""Of the examples that a step expects."""
LARGEST_NOISE, LARGEST_CLIP = 1e6, 1e9


@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """DP-SGD (Abadi et al. 2016, "Deep Learning with Differential Privacy", arXiv:1607.00133).

    A step's gradient is (Σ_i g_i min(1, C / |g_i|) + N(0, (z C)² I)) / L, over the examples that
    were drawn, with the norm over both sides of the cut.
    """

    noise: float = 0.0
    """z, the deviation of the noise on the sum in parts of `clip`; 0 for a plain gradient."""
    clip: float = 0.0
    """C, the largest L2 norm of an example's gradient; 0 where `noise` is."""
    expected_batch: int = 0
    """L, the mean number of examples that a step draws; 0 where `noise` is."""

    def __post_init__(self) -> None:
        in_range("dp.noise", self.noise, 0.0, LARGEST_NOISE)
        in_range("dp.clip", self.clip, 0.0, LARGEST_CLIP)
        at_least("expected_batch", self.expected_batch, 0)
        parts = (self.noise > 0, self.clip > 0, self.expected_batch > 0)
        if any(parts) != all(parts) or self.expected_batch > MOST_EXPECTED:
            raise ConfigError(
                "DP-SGD needs noise, a bound to which examples are clipped and an expected batch "
                f"of at most {MOST_EXPECTED}, or none of them; they are {self.noise:g}, "
                f"{self.clip:g} and {self.expected_batch}"
            )

    @classmethod
    def of_training(cls, dp: DpConfig, train: TrainConfig) -> "PrivacySettings":
        """What the sections of a run give both parties."""
        if not dp.noise:
            return cls()
        expected = train.batch_size * train.accumulation
        return cls(noise=dp.noise, clip=dp.clip, expected_batch=expected)

    @property
    def is_on(self) -> bool:
        """Whether examples are clipped and noise is added."""
        return self.noise > 0
