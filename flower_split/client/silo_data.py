"""A silo's data in its process: tokenised once, whatever number of rounds follow."""

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

from flwr.app import ConfigRecord, RecordDict
from transformers import PreTrainedTokenizerBase

from flower_split.client.file_stamps import Stamps, file_stamps
from flower_split.client.model_source import ModelSource
from flower_split.client.node_config import NodeConfig, Partition
from flower_split.config.sections import DataConfig, SplitConfig
from flower_split.config.tasks import Task
from flower_split.data import (
    DataSummary,
    PoissonBatches,
    Preference,
    SiloData,
    eval_batches,
    load_silo,
    preferences,
    silo_examples,
    train_batches,
)
from flower_split.segments import TableSizes, check_packing, load_tokenizer, table_sizes
from flower_split.training import Batches

logger = logging.getLogger(__name__)

MOST_SILOS = 16
"""Silos whose data one process keeps, as a simulation's worker serves several."""
TOLD = "flower-split.data"
"""Record in the silo's state of a run: its log has the summary of its data."""

Key = tuple[ModelSource, DataConfig, int, int, Partition | None, Task]

_kept: OrderedDict[Key, tuple[Stamps, PreTrainedTokenizerBase, SiloData]] = OrderedDict()
"""The longest unused first; with the stamps of the files that it was read from."""
_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True, eq=False)
class SiloBatches:
    """One silo's sequences, and how a round takes microbatches from them."""

    tokenizer: PreTrainedTokenizerBase
    silo: SiloData
    order: int
    """Tells silos that share one data set apart, where the order of their data is drawn."""
    config: SplitConfig

    @property
    def num_train(self) -> int:
        """Examples to train on."""
        return self.silo.train.num_examples

    @property
    def num_held_out(self) -> int:
        """Examples to evaluate on."""
        return self.silo.held_out.num_examples

    @property
    def summary(self) -> DataSummary:
        """What became of the source's rows."""
        return self.silo.summary

    def train(self, server_round: int) -> Batches:
        """The microbatches of a round: every iteration a pass, in an order of its own; with DP-SGD
        every step draws them.

        Raises:
            DataError: there is nothing to train on, or not what DP-SGD can draw from.
        """
        train = self.config.train
        if self.config.dp.noise:
            expected = train.batch_size * train.accumulation
            return PoissonBatches(self.silo.train, train.batch_size, expected)
        return train_batches(
            self.silo.train,
            train.batch_size,
            seed=self.config.seed,
            silo=self.order,
            round_number=server_round,
        )

    def held_out(self) -> Batches:
        """The held-out data, in its own order.

        Raises:
            DataError: nothing is held out.
        """
        return eval_batches(self.silo.held_out, self.config.train.eval_batch_size)


def silo_batches(
    config: SplitConfig,
    node: NodeConfig,
    source: ModelSource | None = None,
    state: RecordDict | None = None,
) -> SiloBatches:
    """The data of the silo that `node` describes.

    Args:
        config: The run's configuration.
        node: The silo's own.
        source: Where the tokenizer comes from; None takes the model that `config` names.
        state: What lives on in the silo through the run: it says whether the summary was logged.

    Raises:
        DataError: the data is missing, empty or broken, or has tokens that the model has not.
        ModelError: the model has no tokenizer.
        ConfigError: virtual tokens leave no place for a text in the model's context.
    """
    data = node.own_data(config.data)
    source = source or ModelSource(config.model)
    task = config.model.as_task()
    tables = _tables(source, task)
    length = tables.longest(config.train.max_length, config.peft.virtual_tokens)
    if data.packing:
        check_packing(source.name, source.revision, config.model.attention)
    stamps = file_stamps(data.path, data.eval_path)
    key = (source, data, length, config.seed, node.partition, task)
    tokenizer, silo = _kept_or_loaded(key, stamps)
    _tell(node.name(0) if node.silo or node.partition else "", silo.summary, state)
    return SiloBatches(tokenizer=tokenizer, silo=silo, order=node.partition_id or 0, config=config)


def silo_preferences(
    config: SplitConfig, node: NodeConfig
) -> tuple[list[Preference], list[Preference]]:
    """The preference pairs of the silo that `node` describes: to train and to evaluate on.

    Raises:
        DataError: the data is missing, empty or broken, or has no pairs.
    """
    data = node.own_data(config.data)
    number, of = node.partition or (None, None)
    found = silo_examples(data, partition_id=number, num_partitions=of, seed=config.seed)
    train, held = (preferences(examples, data) for examples in found)
    return train, held


def _tell(silo: str, summary: DataSummary, state: RecordDict | None) -> None:
    """Log what became of a silo's data, once a run."""
    if state is not None and TOLD in state:
        return
    logger.info("data of %s: %s", f"silo {silo}" if silo else "this silo", summary.line())
    if state is not None:
        state[TOLD] = ConfigRecord({"rows": summary.rows})


@lru_cache(maxsize=1)
def silo_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The model's tokenizer, loaded once a process.

    Raises:
        ModelError: the model has none.
    """
    return load_tokenizer(source.name, revision=source.revision)


@lru_cache(maxsize=1)
def _tables(source: ModelSource, task: Task) -> TableSizes:
    return table_sizes(source.name, revision=source.revision, task=task)


def held_data() -> list[SiloData]:
    """The data that this process keeps, the longest unused first."""
    with _lock:
        return [silo for _, _, silo in _kept.values()]


def drop_data() -> None:
    """Forget data and tokenizer."""
    with _lock:
        _kept.clear()
    silo_tokenizer.cache_clear()
    _tables.cache_clear()


def _kept_or_loaded(key: Key, stamps: Stamps) -> tuple[PreTrainedTokenizerBase, SiloData]:
    """What is kept under `key`, read anew where the files' `stamps` are others than they were."""
    with _lock:
        kept = _kept.get(key)
        if kept is not None and kept[0] == stamps:
            _kept.move_to_end(key)
            return kept[1:]
        _kept.pop(key, None)
    tokenizer, silo = _load(*key)
    with _lock:
        _kept[key] = (stamps, tokenizer, silo)
        while len(_kept) > MOST_SILOS:
            _kept.popitem(last=False)
    return tokenizer, silo


def _load(
    source: ModelSource,
    data: DataConfig,
    max_length: int,
    seed: int,
    partition: Partition | None,
    task: Task,
) -> tuple[PreTrainedTokenizerBase, SiloData]:
    tokenizer = silo_tokenizer(source)
    number, of = partition or (None, None)
    silo = load_silo(
        data,
        tokenizer,
        max_length=max_length,
        partition_id=number,
        num_partitions=of,
        seed=seed,
        tables=_tables(source, task),
        task=task,
    )
    return tokenizer, silo
