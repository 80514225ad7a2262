"""Every causal model type of transformers is exact when it is cut, or refused, as the docs say."""

import pytest
from family_table import TABLE, TYPES

from flower_split.config.tasks import CAUSAL_LM
from flower_split.segments import FAMILIES

SHARDS = 12
SAMPLE = ("bart", "bert", "helium", "lfm2", "zamba2")


@pytest.mark.sampled(keep=1)
@pytest.mark.medium
@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_sample_is_as_written(model_type: str) -> None:
    TABLE.check([model_type])


@pytest.mark.exhaustive
@pytest.mark.parametrize("model_type", TYPES[3::12])
def test_a_larger_sample_is_as_written(model_type: str) -> None:
    TABLE.check([model_type])


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_all_are_as_written(shard: int) -> None:
    TABLE.check(TYPES[shard::SHARDS])


def test_the_table_has_every_type_and_most_are_exact() -> None:
    written = TABLE.written()
    assert sorted(written) == list(TYPES)
    assert sum(" | no | " not in line for line in written.values()) >= 130


def test_families_with_an_entry_are_exact_with_a_cache() -> None:
    written = TABLE.written()
    causal = [family.model_type for family in FAMILIES.values() if family.task == CAUSAL_LM]
    assert all(" | yes | " in written[model_type] for model_type in causal)
