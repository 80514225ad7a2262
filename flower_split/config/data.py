"""The data: where a silo's text comes from."""

import string
from dataclasses import dataclass

from flower_split.config.checks import at_least, in_range, one_of
from flower_split.errors import ConfigError

BAD_ROWS = ("stop", "skip")
LONG_TEXTS = ("auto", "cut", "split")


def check_encoding(name: str) -> None:
    """Raise `ConfigError` unless Python knows a text encoding of that name."""
    try:
        "a".encode(name)
    except (LookupError, ValueError) as error:
        raise ConfigError(
            f"data.encoding must name a text encoding, such as utf-8, cp1252 or utf-16, not "
            f"{name!r}"
        ) from error


def template_fields(template: str) -> list[tuple[str, str | None]]:
    """The pieces of `data.template`: text, and the field that follows it, or None at the end.

    Raises:
        ConfigError: it names no field, or its braces are not those of plain fields.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"data.template is not valid: {error}. A field stands in braces, and a brace of the "
            "text is written twice"
        ) from error
    found: list[tuple[str, str | None]] = []
    for text, field, spec, conversion in pieces:
        if field is not None and (not field.strip() or spec or conversion):
            raise ConfigError(
                "data.template has braces that name no field: write {field}, without anything "
                "behind it, and a brace of the text twice"
            )
        found.append((text, field))
    if all(field is None for _, field in found):
        raise ConfigError(
            "data.template names no field, so that every prompt would be the same: write {field} "
            "where a field's text belongs"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where a silo's text comes from and how it becomes training sequences."""

    path: str = ""
    """A file of examples (JSON Lines, JSON, CSV, TSV, plain text, Parquet, Arrow), a folder of
    them, a data set that `datasets` saved or its hub has (`owner/name`), or a `module:function`
    that returns a data set or a list of dicts."""
    split: str = "train"
    """Split to train on, where `path` has several."""
    subset: str = ""
    """Subset (configuration) of a data set on the hub, where it has several."""
    revision: str = ""
    """Commit, tag or branch of a data set on the hub; empty for the default branch."""
    encoding: str = "utf-8"
    """Encoding of text files, such as `cp1252` or `utf-16`."""
    bad_rows: str = "stop"
    """What becomes of a row that cannot be read or has no text: `stop` ends the silo's session
    with its line number, `skip` leaves it out and counts it."""
    eval_path: str = ""
    """Held-out data like `path`; empty holds out the split `eval_split`, or else
    `eval_fraction`."""
    eval_split: str = ""
    """Split that is held out, of `eval_path` or else of `path`; empty holds out `eval_fraction` of
    the training data."""
    eval_fraction: float = 0.1
    """Share of the training data held out when `eval_path` and `eval_split` are empty."""
    text: str = "text"
    """Field with the text to learn; with `prompt` set, the target text."""
    prompt: str = ""
    """Field with the prompt, which gets no loss; empty for plain language modelling."""
    template: str = ""
    """Prompt made of several fields, each in braces, such as `Question: {question} Answer:`; it
    gets no loss, and `text` follows it. If the template has `text` itself, what comes before that
    is the prompt."""
    messages: str = ""
    """Field with a chat, a list of messages with role and content: the tokenizer's chat template
    writes it, and the assistant's turns get a loss. Empty for examples without chats."""
    tools: str = "tools"
    """Field with the tools that a chat may use; a chat without it has none."""
    long_texts: str = "auto"
    """What becomes of a text of more than `train.max-length` tokens: `cut` drops its end, `split`
    makes several sequences of it; `auto` splits plain text files and cuts everything else."""
    packing: bool = False
    """Whether several short sequences share a row of `train.max-length` tokens, none of which sees
    another; each begins at position 0."""
    chosen: str = "chosen"
    """Field with the better answer of a pair, for a ClientApp of one's own that trains on
    preferences."""
    rejected: str = "rejected"
    """Field with the worse answer of a pair."""
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
        one_of("data.bad-rows", self.bad_rows, BAD_ROWS)
        one_of("data.long-texts", self.long_texts, LONG_TEXTS)
        check_encoding(self.encoding)
        if not self.split:
            raise ConfigError("data.split must name a split of the data, such as 'train'")
        if self.eval_split == self.split and not self.eval_path:
            raise ConfigError(
                f"data.eval-split is {self.eval_split!r}, on which data.split trains: name another"
            )
        asked = [
            key
            for key, value in (
                ("data.prompt", self.prompt),
                ("data.template", self.template),
                ("data.messages", self.messages),
            )
            if value
        ]
        if len(asked) > 1:
            raise ConfigError(
                f"{' and '.join(asked)} are ways to say what a prompt is: set one of them"
            )
        if self.template:
            template_fields(self.template)
        if self.long_texts == "split" and asked:
            raise ConfigError(
                f"data.long-texts 'split' is for plain texts, and {asked[0]} makes examples with "
                "a prompt, which a second sequence would lack: set it to 'cut'"
            )
