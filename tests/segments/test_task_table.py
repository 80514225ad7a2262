"""Every model type is exact for a task when it is cut, or refused, as the docs say."""

import pytest
from task_table import NAMES, TYPES, exact, line_of, prove_task, written_rows

from flower_split.config.tasks import CAUSAL_LM, MASKED_LM, TOKEN_CLASSIFICATION
from flower_split.segments import FAMILIES

SHARDS = 12
WRITE = "run: python tests/support/task_table.py --write"


@pytest.mark.medium
@pytest.mark.parametrize(
    ("model_type", "task"),
    [("distilbert", MASKED_LM), ("gpt2", TOKEN_CLASSIFICATION), ("t5", TOKEN_CLASSIFICATION)],
)
def test_a_sample_is_as_written(model_type: str, task: str) -> None:
    proved = prove_task(model_type, task) == ""
    assert proved == exact(written_rows()[model_type])[task], WRITE


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES[3::24])
def test_a_larger_sample_is_as_written(model_type: str) -> None:
    assert line_of(model_type) == written_rows()[model_type], WRITE


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_all_are_as_written(shard: int) -> None:
    written = written_rows()
    for model_type in TYPES[shard::SHARDS]:
        assert line_of(model_type) == written[model_type], WRITE


def test_the_table_has_every_type() -> None:
    written = written_rows()
    assert sorted(written) == list(TYPES), WRITE
    for task, names in NAMES.items():
        assert all((task in exact(written[name])) == (name in names) for name in TYPES)


def test_families_with_an_entry_are_exact() -> None:
    written = written_rows()
    for family in FAMILIES.values():
        if family.task != CAUSAL_LM:
            assert exact(written[family.model_type])[family.task], family.key
