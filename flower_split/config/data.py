"""The data: where a silo's text comes from."""

from dataclasses import dataclass

from flower_split.config.checks import at_least, in_range, one_of
from flower_split.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where a silo's text comes from and how it becomes training sequences."""

    path: str = ""
    """A file of examples, such as a `.jsonl` or `.txt` file, or a `module:function` that returns a
    `datasets.Dataset` or a list of dicts."""
    eval_path: str = ""
    """Held-out data like `path`; empty holds out `eval_fraction` of the training data."""
    eval_fraction: float = 0.1
    """Share of the training data held out when `eval_path` is empty."""
    text: str = "text"
    """Field with the text to learn; with `prompt` set, the target text."""
    prompt: str = ""
    """Field with the prompt, which gets no loss; empty for plain language modelling."""
    text_pair: str = ""
    """Field with the second text of a pair, for `model.task` `sequence-classification`; empty for
    single texts."""
    label: str = "label"
    """Field with the label, for a classifier: a name of `model.labels` or its id. For
    `token-classification` `text` is the field with the list of words, and this that with a label
    for each word. Empty for a reward model."""
    mlm_probability: float = 0.15
    """Share of the tokens that are to be guessed, for `model.task` `masked-lm`."""
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
        in_range("data.mlm-probability", self.mlm_probability, 0.0, 1.0, open_low=True)
        if not self.text:
            raise ConfigError("data.text must name a field of the examples; it is empty")
