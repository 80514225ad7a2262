"""The summary of a silo's data: what became of every row, in numbers alone."""

from dataclasses import dataclass, field

from flower_split.data.batching import Dataset

_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What the examples of training, or the held-out ones, came to."""

    examples: int = 0
    """Examples that sequences were made of."""
    sequences: int = 0
    tokens: int = 0
    """Of all sequences, padding aside."""
    targets: int | None = None
    """Tokens with a loss, or labels; None where they are drawn anew for every pass."""
    truncated: int = 0
    """Examples that were cut off at the maximum length."""
    divided: int = 0
    """Examples that became several sequences."""
    dropped: int = 0
    """Examples without a token to learn within the maximum length."""
    lost: int = 0
    """Tokens of examples that were cut off or dropped, beyond what is in a sequence."""
    carried: int = 0
    """Examples that carry the tokenizer's special tokens already."""


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What became of the rows of a silo's source. It names no value of them."""

    origin: str = ""
    """The source."""
    rows: int = 0
    """Rows of the source, bad ones included."""
    own: int = 0
    """Of these the silo's, after partitioning."""
    kept: int = 0
    """Of these what `data.max-examples` left."""
    skipped: int = 0
    """Bad rows that were left out."""
    skipped_at: tuple[str, ...] = ()
    """Where the first of them are."""
    ignored: tuple[str, ...] = ()
    """What of the source no silo takes: files of a folder, other splits, ids of a column."""
    max_length: int = 0
    packed_rows: int = 0
    """Rows that packing made of the training sequences; 0 without packing."""
    train: Counts = field(default_factory=Counts)
    held_out: Counts = field(default_factory=Counts)

    def line(self) -> str:
        """The summary in one line."""
        parts = [f"{_number(self.rows, 'row')} read from {self.origin}"]
        if self.ignored:
            others = len(self.ignored) - _NAMED
            named = ", ".join(self.ignored[:_NAMED])
            named += f" and {others} more" if others > 0 else ""
            parts.append(f"not taken of it: {named}")
        if self.skipped:
            places = ", ".join(self.skipped_at)
            more = ", …" if self.skipped > len(self.skipped_at) else ""
            parts.append(f"{_number(self.skipped, 'bad row')} skipped ({places}{more})")
        if self.own != self.rows:
            parts.append(f"{self.own:,} are this silo's")
        if self.kept != self.own:
            parts.append(f"{self.kept:,} kept by data.max-examples")
        parts.append(f"training: {self._told(self.train)}")
        if self.packed_rows:
            parts.append(f"packed into {_number(self.packed_rows, 'row')}")
        parts.append(f"held out: {self._told(self.held_out)}")
        return "; ".join(parts)

    def _told(self, counts: Counts) -> str:
        if not counts.sequences:
            return "nothing"
        told = (
            f"{_number(counts.examples, 'example')} in {_number(counts.sequences, 'sequence')} of "
            f"{_number(counts.tokens, 'token')}"
        )
        if counts.targets is not None:
            told += f", {counts.targets:,} of them with a loss"
        for number, what in (
            (counts.truncated, f"cut off at {self.max_length} tokens"),
            (counts.divided, f"divided at {self.max_length} tokens"),
            (counts.dropped, f"dropped, with nothing to learn within {self.max_length} tokens"),
            (counts.carried, "with special tokens of their own, which were not added again"),
        ):
            if number:
                told += f", {_number(number, 'example')} {what}"
        if counts.lost:
            told += f", {_number(counts.lost, 'token')} left out so"
        return told


def counts_of(dataset: Dataset) -> Counts:
    """What a data set came to."""
    return Counts(
        examples=dataset.num_examples,
        sequences=len(dataset),
        tokens=dataset.num_tokens,
        targets=dataset.num_targets,
        truncated=dataset.truncated,
        divided=getattr(dataset, "divided", 0),
        dropped=dataset.dropped,
        lost=getattr(dataset, "lost", 0),
        carried=getattr(dataset, "carried", 0),
    )


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
