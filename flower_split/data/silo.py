"""A silo's data: from the run's configuration to tokenised training and held-out data."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from flower_split.config.sections import DataConfig
from flower_split.config.tasks import CAUSAL, Task
from flower_split.data.batching import Dataset
from flower_split.data.examples import Examples, Rows
from flower_split.data.held_out import hold_out, limit
from flower_split.data.partitioning import partition
from flower_split.data.sources import load_examples
from flower_split.data.task_data import encode_task
from flower_split.data.tokenizing import tokenize
from flower_split.errors import DataError
from flower_split.segments import TableSizes


@dataclass(frozen=True, kw_only=True, eq=False)
class SiloData:
    """What a silo trains on and what it is evaluated on."""

    train: Dataset
    """Training data; never empty."""
    held_out: Dataset
    """Held-out data; empty where `data.eval-fraction` is 0 and `data.eval-path` is empty."""

    @property
    def num_examples(self) -> int:
        """Examples that the silo trains on, by which its updates are weighed."""
        return len(self.train)


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
    train, held = silo_examples(
        config,
        partition_id=partition_id,
        num_partitions=num_partitions,
        seed=seed,
        source=source,
    )

    def tokenized(examples: Examples) -> Dataset:
        if task != CAUSAL:
            return encode_task(
                examples, tokenizer, config, task, max_length=max_length, tables=tables
            )
        return tokenize(
            examples,
            tokenizer,
            text=config.text,
            prompt=config.prompt,
            max_length=max_length,
            tables=tables,
        )

    return SiloData(train=tokenized(train), held_out=tokenized(held))


def silo_examples(
    config: DataConfig,
    *,
    partition_id: int | None,
    num_partitions: int | None,
    seed: int,
    source: str | Rows | None = None,
) -> tuple[Examples, Examples]:
    """A silo's training and held-out examples; arguments and errors as for `load_silo`."""
    if (partition_id is None) != (num_partitions is None):
        raise DataError(
            f"partition-id is {partition_id} and num-partitions is {num_partitions}: the node "
            "config must have both, or neither where the data is the silo's own"
        )
    examples, partitioned = load_examples(
        config.path if source is None else source,
        partition_id=partition_id,
        num_partitions=num_partitions,
    )
    if partition_id is not None and num_partitions is not None:
        if not partitioned:
            examples = partition(
                examples,
                config,
                partition_id=partition_id,
                num_partitions=num_partitions,
                seed=seed,
            )
    elif config.partitioner in ("dirichlet", "natural"):
        raise DataError(
            f"data.partitioner {config.partitioner!r} needs to know which silo this is: start its "
            "SuperNode with --node-config 'partition-id=… num-partitions=…', or set "
            "data.partitioner to 'none' where data.path is the silo's own data"
        )
    examples = limit(examples, config.max_examples, seed=seed)
    if not config.eval_path:
        return hold_out(examples, config.eval_fraction, seed=seed)
    held, _ = load_examples(
        config.eval_path, partition_id=partition_id, num_partitions=num_partitions
    )
    return examples, held
