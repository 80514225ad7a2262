"""Metrics of a round of training and of an evaluation."""

from dataclasses import asdict, dataclass

from flower_split.config.tasks import CAUSAL_LM
from flower_split.optimization.label_counts import LabelCounts, macro_f1, to_metrics
from flower_split.optimization.loss import perplexity


@dataclass(frozen=True, kw_only=True)
class TrainMetrics:
    """What one silo trained in one round, and how well."""

    loss: float
    """Mean cross-entropy in nats over all target tokens, each before the step that learnt it."""
    steps: int
    """Optimizer steps taken."""
    examples: int
    """Sequences trained on, counted as often as they were."""
    tokens: int
    """Target tokens trained on: those with loss, counted as often as they were."""
    seconds: float
    """Wall-clock time of the round, in seconds."""
    waited: float
    """Of these, seconds in which the silo had nothing to do but to wait for the trunk."""
    learning_rate: float
    """That of the last step."""
    grad_norm: float | None
    """Mean over the steps of the gradient's global norm before clipping; None where unknown."""

    def as_dict(self) -> dict[str, float | int]:
        """The metrics that are known, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class EvalMetrics:
    """How well a model predicts the target tokens of held-out data."""

    loss: float
    """Mean cross-entropy in nats over all target tokens."""
    token_accuracy: float
    """Share of the target tokens that are the model's most likely one."""
    tokens: int
    """Target tokens evaluated on: those with loss."""
    examples: int
    """Sequences evaluated on."""
    labels: LabelCounts | None = None
    """How often each label was found, of a classifier; None of a language model."""

    @property
    def perplexity(self) -> float:
        """e to the loss, see `flower_split.optimization.loss`."""
        return perplexity(self.loss)

    def reported(self) -> dict[str, float | list[float]]:
        """What a silo reports, by name; of a classifier's counts the server makes F1."""
        if self.labels is None:
            return {
                "eval-loss": self.loss,
                "perplexity": self.perplexity,
                "token-accuracy": self.token_accuracy,
            }
        return {
            "eval-loss": self.loss,
            "accuracy": self.token_accuracy,
            "f1": macro_f1(self.labels),
            **to_metrics(self.labels),
        }

    def weight(self, task: str) -> int | None:
        """Weight of the silo in averages: its predictions, by which its means become sums.

        None for causal language models, whose silos are weighed by their examples.
        """
        return None if task == CAUSAL_LM else self.tokens

    def as_dict(self) -> dict[str, float | int]:
        """All metrics by name, perplexity among them."""
        found = {name: value for name, value in asdict(self).items() if name != "labels"}
        if self.labels is not None:
            return {**found, "f1": macro_f1(self.labels)}
        return {**found, "perplexity": self.perplexity}
