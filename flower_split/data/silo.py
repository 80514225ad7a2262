"""A silo's data: from the run's configuration to tokenised training and held-out data."""

from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from flower_split.config.sections import DataConfig
from flower_split.config.tasks import CAUSAL, Task
from flower_split.data.batching import Dataset
from flower_split.data.examples import Examples, Rows
from flower_split.data.held_out import hold_out, limit
from flower_split.data.packing import pack
from flower_split.data.partitioning import partition
from flower_split.data.reading.bad_rows import BadRows
from flower_split.data.sequences import TokenizedDataset
from flower_split.data.sources import load_examples
from flower_split.data.summary import DataSummary, counts_of
from flower_split.data.task_data import encode_task
from flower_split.data.tokenizing import divides_texts, tokenize_silo
from flower_split.errors import DataError
from flower_split.segments import TableSizes


@dataclass(frozen=True, kw_only=True, eq=False)
class SiloData:
    """What a silo trains on and what it is evaluated on."""

    train: Dataset
    """Training data; never empty."""
    held_out: Dataset
    """Held-out data; empty where nothing is held out."""
    summary: DataSummary
    """What became of the source's rows."""

    @property
    def num_examples(self) -> int:
        """Examples that the silo trains on, by which its updates are weighed."""
        return self.train.num_examples


def load_silo(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    partition_id: int | None,
    num_partitions: int | None,
    max_length: int,
    seed: int,
    source: str | Rows | None = None,
    tables: TableSizes | None = None,
    task: Task = CAUSAL,
) -> SiloData:
    """One silo's data, tokenised.

    Data of `data.eval-path` is not partitioned: every silo is evaluated on all of it, unless a
    `module:function` returns each silo's own.

    Args:
        config: Where the data is, and how it becomes silos.
        tokenizer: Of the model that is trained.
        partition_id: Which silo, from 0; None where all the data is the silo's own.
        num_partitions: Number of silos; None where all the data is the silo's own.
        max_length: Tokens at which a sequence is cut off.
        seed: The run's seed, the same in every silo.
        source: A `datasets.Dataset` or a list of dicts to use in place of `config.path`.
        tables: What the model knows; None does not check against it.
        task: What the model is for.

    Raises:
        DataError: data is missing, empty or broken, the silo would have none, or a text has a
            token or a length that the model does not know; or the task is a reward model's.
    """
    if task.rewards:
        raise DataError(
            "a reward model, with one name in model.labels, learns from pairs of texts, and the "
            "ready-made ClientApp has no loss for them: train session.model in a ClientApp of your "
            "own, such as with TRL's RewardTrainer "
            "(examples/stock_trainers/trl_client_app.py), and give session.reply num_examples"
        )
    bad = BadRows(config.bad_rows)
    picked = _pick(config, partition_id, num_partitions, seed, source, bad)

    def tokenized(examples: Examples) -> Dataset:
        if task != CAUSAL:
            return encode_task(
                examples, tokenizer, config, task, max_length=max_length, tables=tables, bad=bad
            )
        return tokenize_silo(
            examples, tokenizer, config, max_length=max_length, tables=tables, bad=bad
        )

    train, held = tokenized(picked.train), tokenized(picked.held)
    if picked.holds_out_sequences and isinstance(train, TokenizedDataset):
        train, held = _held_out_of_one(train, picked.train.origin, config, seed)
    summary = DataSummary(
        origin=picked.train.origin,
        rows=picked.rows,
        own=picked.own,
        kept=picked.kept,
        skipped=bad.count,
        skipped_at=tuple(bad.places),
        ignored=picked.train.ignored,
        max_length=max_length,
        train=counts_of(train),
        held_out=counts_of(held),
    )
    if config.packing and isinstance(train, TokenizedDataset):
        train = pack(train, max_length)
        summary = replace(summary, packed_rows=len(train))
    return SiloData(train=train, held_out=held, summary=summary)


def silo_examples(
    config: DataConfig,
    *,
    partition_id: int | None,
    num_partitions: int | None,
    seed: int,
    source: str | Rows | None = None,
) -> tuple[Examples, Examples]:
    """A silo's training and held-out examples; arguments and errors as for `load_silo`."""
    bad = BadRows(config.bad_rows)
    picked = _pick(config, partition_id, num_partitions, seed, source, bad)
    return picked.train, picked.held


@dataclass(frozen=True, kw_only=True)
class _Picked:
    """A silo's examples, and how many there were on the way to them."""

    train: Examples
    held: Examples
    rows: int
    own: int
    kept: int
    holds_out_sequences: bool = False
    """Whether there is one long text, of whose sequences a part is to be held out."""


def _pick(
    config: DataConfig,
    partition_id: int | None,
    num_partitions: int | None,
    seed: int,
    source: str | Rows | None,
    bad: BadRows,
) -> _Picked:
    if (partition_id is None) != (num_partitions is None):
        raise DataError(
            f"partition-id is {partition_id} and num-partitions is {num_partitions}: the node "
            "config must have both, or neither where the data is the silo's own"
        )
    path = config.path if source is None else source

    def load(of: str | Rows, split: str) -> tuple[Examples, bool]:
        return load_examples(
            of,
            partition_id=partition_id,
            num_partitions=num_partitions,
            config=config,
            split=split,
            bad=bad,
        )

    examples, partitioned = load(path, config.split)
    rows = len(examples) + bad.count
    if partition_id is not None and num_partitions is not None:
        if not partitioned:
            examples = partition(
                examples,
                config,
                partition_id=partition_id,
                num_partitions=num_partitions,
                seed=seed,
                bad=bad,
            )
    elif config.partitioner in ("dirichlet", "natural"):
        raise DataError(
            f"data.partitioner {config.partitioner!r} needs to know which silo this is: start its "
            "SuperNode with --node-config 'partition-id=… num-partitions=…', or set "
            "data.partitioner to 'none' where data.path is the silo's own data"
        )
    own = len(examples)
    examples = limit(examples, config.max_examples, seed=seed)
    kept = len(examples)
    by_sequence = False
    if config.eval_path:
        train, held = examples, load(config.eval_path, config.eval_split or config.split)[0]
    elif config.eval_split:
        train, held = examples, load(path, config.eval_split)[0]
    elif config.eval_fraction and kept == 1 and divides_texts(examples, config):
        train, held, by_sequence = examples, examples.select([]), True
    else:
        train, held = hold_out(examples, config.eval_fraction, seed=seed)
    return _Picked(
        train=train, held=held, rows=rows, own=own, kept=kept, holds_out_sequences=by_sequence
    )


def _held_out_of_one(
    data: TokenizedDataset, origin: str, config: DataConfig, seed: int
) -> tuple[TokenizedDataset, TokenizedDataset]:
    """The sequences of one long text to train on, and those that are held out."""
    places = Examples.all_of([{"place": place} for place in range(len(data))], origin=origin)
    train, held = hold_out(places, config.eval_fraction, seed=seed)
    return data.select(train.picked), replace(data.select(held.picked), divided=0)
