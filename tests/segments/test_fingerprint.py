"""Two parties get the same fingerprint exactly when they would cut the same architecture."""

from pathlib import Path

import pytest
from tiny_models import CASE_BY_NAME, CASES, Case
from transformers import AutoConfig, AutoModelForCausalLM

from flower_split.segments import fingerprint


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_survives_saving_and_loading(case: Case, tmp_path: Path) -> None:
    model = case.model()
    model.config.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert fingerprint(again.config) == fingerprint(model.config)


def test_architectures_differ() -> None:
    marks = [fingerprint(case.config()) for case in CASES]
    assert len(set(marks)) == len(marks)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_cache": False},
        {"pad_token_id": 7},
        {"eos_token_id": [2, 3]},
        {"dtype": "bfloat16"},
        {"num_labels": 5},
        {"attn_implementation": "eager"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_party_may_choose_does_not_count(changes: dict[str, object]) -> None:
    case = CASE_BY_NAME["mixtral"]
    assert fingerprint(case.config(**changes)) == fingerprint(case.config())


@pytest.mark.parametrize(
    "changes",
    [
        {"rms_norm_eps": 1e-3},
        {"sliding_window": 6},
        {"num_hidden_layers": 5},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_the_result_counts(changes: dict[str, object]) -> None:
    case = CASE_BY_NAME["mixtral"]
    assert fingerprint(case.config(**changes)) != fingerprint(case.config())
