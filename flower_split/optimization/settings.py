"""The optimizer's constants, which a silo and the trunk agree on in the handshake."""

from dataclasses import dataclass

from flower_split.config.checks import in_range
from flower_split.config.training import MAX_LEARNING_RATE, TrainConfig
from flower_split.errors import WireError

LEAST_EPS = 1e-12
"""Without it, an element whose gradient was always 0 is stepped by 0 / 0."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Constants of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) and of clipping.

    The learning rate is not among them: it comes with every step, so that any schedule works.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    """Bound of the global gradient norm over both sides of the cut; 0 does not clip."""
    max_learning_rate: float = MAX_LEARNING_RATE
    """Bound of the learning rate that a step may ask for."""

    def __post_init__(self) -> None:
        in_range("beta1", self.beta1, 0.0, 1.0, open_high=True)
        in_range("beta2", self.beta2, 0.0, 1.0, open_high=True)
        in_range("eps", self.eps, LEAST_EPS, 1.0)
        in_range("weight_decay", self.weight_decay, 0.0, 1e3)
        in_range("max_grad_norm", self.max_grad_norm, 0.0, 1e9)
        in_range("max_learning_rate", self.max_learning_rate, 0.0, MAX_LEARNING_RATE)

    @classmethod
    def of_training(cls, train: TrainConfig, *, shared: bool = False) -> "OptimizerSettings":
        """The constants that a run's training section gives both parties.

        Args:
            train: The section.
            shared: Whether all silos step one adapter of the trunk. No silo steps that at a higher
                rate than the run's; its own it may step as its ClientApp likes.
        """
        return cls(
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            max_learning_rate=train.learning_rate if shared else MAX_LEARNING_RATE,
        )

    def check_learning_rate(self, rate: float) -> None:
        """Raise `WireError` unless a step may ask for this learning rate."""
        if not 0.0 <= rate <= self.max_learning_rate:
            raise WireError(
                f"learning_rate: a step asks for a learning rate of {rate}, expected 0 to "
                f"{self.max_learning_rate:g}"
            )
