"""The task: what is learned of a text, and the names of the labels where there are any."""

from dataclasses import dataclass

from flower_split.config.checks import one_of
from flower_split.errors import ConfigError

CAUSAL_LM = "causal-lm"
SEQUENCE_CLASSIFICATION = "sequence-classification"
TOKEN_CLASSIFICATION = "token-classification"
MASKED_LM = "masked-lm"

TASKS = (CAUSAL_LM, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION, MASKED_LM)
CLASSIFYING = (SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION)
"""The tasks whose head has a row for each label."""

HEADS = ("classifier", "score")
"""Modules of a classifying model that are trained as a whole: those that PEFT adds by itself."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model is for, by which its stock class is chosen."""

    name: str = CAUSAL_LM
    """One of `TASKS`."""
    labels: tuple[str, ...] = ()
    """Names of the labels in the order of the head's rows; one for a reward model, whose head has
    one row. Empty where the task has none."""

    def __post_init__(self) -> None:
        one_of("model.task", self.name, TASKS)
        if not self.classifies:
            if self.labels:
                raise ConfigError(
                    f"model.labels would not be used with model.task {self.name!r}: leave it "
                    f"empty, or set model.task to one of {', '.join(CLASSIFYING)}"
                )
            return
        if not self.labels or not all(self.labels):
            raise ConfigError(
                f"model.task {self.name!r} needs model.labels: name every label, with commas, in "
                "the order of their ids"
            )
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        if twice:
            raise ConfigError(f"model.labels names {twice[0]!r} twice: name every label once")

    @property
    def classifies(self) -> bool:
        """Whether it has labels."""
        return self.name in CLASSIFYING

    @property
    def rewards(self) -> bool:
        """Whether it is a reward model's, with one label that tells nothing apart."""
        return len(self.labels) == 1


CAUSAL = Task()
"""Language modelling from left to right, the default."""
