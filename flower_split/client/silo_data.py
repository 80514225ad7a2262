"""A silo's data in its process: tokenised once, whatever number of rounds follow."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from flower_split.config.sections import DataConfig, ModelConfig, SplitConfig
from flower_split.data import SiloData, eval_batches, load_silo, train_batches
from flower_split.errors import ConfigError
from flower_split.segments import load_tokenizer
from flower_split.training import Batches

MOST_SILOS = 16
"""Silos whose data one process keeps, as a simulation's worker serves several."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Which part of a data set is this silo's; None where all of it is."""

    number: int | None = None
    of: int | None = None

    @classmethod
    def from_node_config(cls, node_config: Mapping[str, object]) -> "Partition":
        """The part that `partition-id` and `num-partitions` of a node config name.

        Raises:
            ConfigError: one of them is missing or not such a number.
        """
        number, of = node_config.get("partition-id"), node_config.get("num-partitions")
        if number is None and of is None:
            return cls()
        if not isinstance(number, int) or not isinstance(of, int) or not 0 <= number < of:
            raise ConfigError(
                f"the node config has partition-id {number!r} and num-partitions {of!r}: expected "
                "both or neither, whole numbers, the first below the second"
            )
        return cls(number=number, of=of)


@dataclass(frozen=True, kw_only=True, eq=False)
class SiloBatches:
    """One silo's sequences, and how a round takes microbatches from them."""

    tokenizer: PreTrainedTokenizerBase
    silo: SiloData
    partition: Partition
    config: SplitConfig

    @property
    def num_train(self) -> int:
        """Sequences to train on."""
        return len(self.silo.train)

    @property
    def num_held_out(self) -> int:
        """Sequences to evaluate on."""
        return len(self.silo.held_out)

    def train(self, server_round: int) -> Batches:
        """The microbatches of a round: every iteration a pass, in an order of its own.

        Raises:
            DataError: there is nothing to train on.
        """
        return train_batches(
            self.silo.train,
            self.config.train.batch_size,
            seed=self.config.seed,
            silo=self.partition.number or 0,
            round_number=server_round,
        )

    def held_out(self) -> Batches:
        """The held-out data, in its own order.

        Raises:
            DataError: nothing is held out.
        """
        return eval_batches(self.silo.held_out, self.config.train.eval_batch_size)


def silo_batches(config: SplitConfig, node_config: Mapping[str, object]) -> SiloBatches:
    """The data of the silo that `node_config` describes.

    Raises:
        ConfigError: the node config is not valid.
        DataError: the data is missing, empty or broken.
        ModelError: the model has no tokenizer.
    """
    partition = Partition.from_node_config(node_config)
    tokenizer, silo = _load(
        config.model, config.data, config.train.max_length, config.seed, partition
    )
    return SiloBatches(tokenizer=tokenizer, silo=silo, partition=partition, config=config)


@lru_cache(maxsize=MOST_SILOS)
def _load(
    model: ModelConfig, data: DataConfig, max_length: int, seed: int, partition: Partition
) -> tuple[PreTrainedTokenizerBase, SiloData]:
    tokenizer = load_tokenizer(model.name, revision=model.revision)
    silo = load_silo(
        data,
        tokenizer,
        max_length=max_length,
        partition_id=partition.number,
        num_partitions=partition.of,
        seed=seed,
    )
    return tokenizer, silo
