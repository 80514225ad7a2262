"""Every model type is exact for a task when it is cut, or refused, as the docs say."""

import pytest
from task_table import NAMES, TABLE, TYPES, exact, prove_task

from flower_split.config.tasks import CAUSAL_LM, MASKED_LM, TOKEN_CLASSIFICATION
from flower_split.segments import FAMILIES

SHARDS = 12
WRITE = "run: python tests/support/task_table.py --write"


@pytest.mark.sampled(keep=1)
@pytest.mark.medium
@pytest.mark.parametrize(
    ("model_type", "task"),
    [("distilbert", MASKED_LM), ("gpt2", TOKEN_CLASSIFICATION), ("t5", TOKEN_CLASSIFICATION)],
)
def test_a_sample_is_as_written(model_type: str, task: str) -> None:
    proved = prove_task(model_type, task) == ""
    assert proved == exact(TABLE.written()[model_type])[task], WRITE


@pytest.mark.exhaustive
@pytest.mark.parametrize("model_type", TYPES[3::24])
def test_a_larger_sample_is_as_written(model_type: str) -> None:
    TABLE.check([model_type])


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_all_are_as_written(shard: int) -> None:
    TABLE.check(TYPES[shard::SHARDS])


def test_the_table_has_every_type() -> None:
    written = TABLE.written()
    assert sorted(written) == list(TYPES)
    for task, names in NAMES.items():
        assert all((task in exact(written[name])) == (name in names) for name in TYPES)


def test_families_with_an_entry_are_exact() -> None:
    written = TABLE.written()
    for family in FAMILIES.values():
        if family.task != CAUSAL_LM:
            assert exact(written[family.model_type])[family.task], family.key
