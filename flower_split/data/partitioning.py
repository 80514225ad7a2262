"""Partitioning: one data set becomes silos.

`iid` is a seeded permutation cut into contiguous shards; `dirichlet` and `natural` are the
partitioners of `flwr-datasets`, which the extra `flower-split[data]` installs.
"""

import warnings
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from typing import Any

import torch

from flower_split.config.sections import DataConfig
from flower_split.config.seeds import derive_seed
from flower_split.data.examples import Examples
from flower_split.data.reading.bad_rows import BadRows
from flower_split.errors import DataError

MIN_PARTITION_SIZE = 2
"""Examples that `dirichlet` gives every silo at least: one to train on and one to hold out."""


def partition(
    examples: Examples,
    config: DataConfig,
    *,
    partition_id: int,
    num_partitions: int,
    seed: int,
    bad: BadRows | None = None,
) -> Examples:
    """One silo's part of the examples; the parts of all silos are disjoint.

    `none` is the exception: every silo keeps all, because its data is its own already.

    Args:
        examples: All silos' data.
        config: Which partitioner, and its options.
        partition_id: Which silo, from 0.
        num_partitions: Number of silos.
        seed: The run's seed, the same in every silo.
        bad: What becomes of rows without a value in the column; None raises the first one's error.

    Raises:
        DataError: the silo would have no data, the column is broken, or `flwr-datasets` is needed
            and not installed.
    """
    if not 0 <= partition_id < num_partitions:
        raise DataError(
            f"partition_id must be at least 0 and below num_partitions {num_partitions}, "
            f"not {partition_id}"
        )
    if config.partitioner == "none":
        mine = list(range(len(examples)))
    elif config.partitioner == "iid":
        mine = iid_indices(len(examples), partition_id, num_partitions, seed)
    else:
        examples, values = _ranks(examples, config.partition_by, bad or BadRows())
        mine = _by_column(examples, values, config, partition_id, num_partitions, seed)
        unused = _unused(len(set(values)), config, num_partitions)
        examples = replace(examples, ignored=(*examples.ignored, *unused))
    if not mine:
        raise DataError(
            f"silo {partition_id} of {num_partitions} has no data: {examples.origin} has "
            f"{len(examples)} examples. Use fewer silos or more data"
        )
    return examples.select(mine)


def iid_indices(length: int, partition_id: int, num_partitions: int, seed: int) -> list[int]:
    """Shard `partition_id` of a permutation; the shards' sizes differ by one at most."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "iid"))
    order: list[int] = torch.randperm(length, generator=generator).tolist()
    small, larger = divmod(length, num_partitions)
    start = partition_id * small + min(partition_id, larger)
    return order[start : start + small + (partition_id < larger)]


def _by_column(
    examples: Examples,
    values: list[int],
    config: DataConfig,
    partition_id: int,
    num_partitions: int,
    seed: int,
) -> list[int]:
    partitioner = _partitioner(config, num_partitions, seed)
    partitioner.dataset = _dataset({config.partition_by: values, _INDEX: list(range(len(values)))})
    if config.partitioner == "natural":
        _check_natural(len(set(values)), config.partition_by, partition_id, num_partitions)
    try:
        # Each resampling warns, which the error below tells of; and there is a progress bar, that
        # goes to the standard error of the moment and cannot be turned off otherwise.
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            part = partitioner.load_partition(partition_id)
    except ValueError as exc:
        raise DataError(
            f"{examples.origin}: {len(examples)} examples cannot be partitioned by "
            f"{config.partition_by!r} into {num_partitions} silos of at least "
            f"{MIN_PARTITION_SIZE} with data.dirichlet-alpha {config.dirichlet_alpha:g}: raise "
            "it, or use fewer silos"
        ) from exc
    return list(part[_INDEX])


def _check_natural(ids: int, column: str, partition_id: int, num_partitions: int) -> None:
    if partition_id >= ids:
        raise DataError(
            f"silo {partition_id} of {num_partitions} has no data: column {column!r} has "
            f"{ids} different ids. Use at most {ids} silos"
        )


def _unused(ids: int, config: DataConfig, num_partitions: int) -> tuple[str, ...]:
    """What no silo has: ids beyond the number of silos, where each id is one."""
    if config.partitioner != "natural" or ids <= num_partitions:
        return ()
    return (
        f"{ids - num_partitions} of the {ids} ids in column {config.partition_by!r}, because "
        f"there are {num_partitions} silos",
    )


def _ranks(examples: Examples, name: str, bad: BadRows) -> tuple[Examples, list[int]]:
    """The examples that have a value in the column, and the ranks of these values.

    They sort as the values do, and any whole number or text has one.
    """
    values, kept = list[Any](), list[int]()
    for indices, rows in examples.batches():
        for index, row in zip(indices, rows, strict=True):
            try:
                value = examples.value(index, name, row)
                kind = type(values[0] if values else value)
                if not isinstance(value, str | int) or type(value) is not kind:
                    raise DataError(
                        f"{examples.where(index)}: column {name!r} must be all text or all whole "
                        f"numbers; here it is {type(value).__name__}, before {kind.__name__}"
                    )
            except DataError as error:
                bad.take(error, examples.mark(index))
            else:
                values.append(value)
                kept.append(index)
    if not kept:
        raise bad.refuse_all(examples.origin)
    rank = {value: number for number, value in enumerate(sorted(set(values)))}
    found = examples if len(kept) == len(examples) else examples.select(kept)
    return found, [rank[value] for value in values]


def _partitioner(config: DataConfig, num_partitions: int, seed: int) -> Any:
    try:
        from flwr_datasets.partitioner import DirichletPartitioner, NaturalIdPartitioner
    except ImportError as exc:
        raise DataError(
            f"data.partitioner {config.partitioner!r} needs flwr-datasets ({exc}): "
            "pip install 'flower-split[data]'"
        ) from exc
    if config.partitioner == "natural":
        return NaturalIdPartitioner(partition_by=config.partition_by)
    return DirichletPartitioner(
        num_partitions=num_partitions,
        partition_by=config.partition_by,
        alpha=float(config.dirichlet_alpha),
        min_partition_size=MIN_PARTITION_SIZE,
        seed=derive_seed(seed, "dirichlet"),
    )


def _dataset(columns: dict[str, Any]) -> Any:
    from datasets.arrow_dataset import Dataset

    return Dataset.from_dict(columns)


_INDEX = "row index of flower_split"
