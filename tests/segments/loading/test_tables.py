"""Table sizes: the tokens and positions that a model knows, as it says itself."""

from pathlib import Path

import pytest
import torch
from tiny_models import CASE_BY_NAME, CASES, Case

from flower_split.segments import table_sizes

ONE_OF_EACH = {case.model_type: case for case in CASES}


@pytest.mark.parametrize("case", ONE_OF_EACH.values(), ids=lambda case: case.name)
def test_a_model_computes_all_that_it_is_said_to_know_and_nothing_beyond(
    case: Case, tmp_path: Path
) -> None:
    case.config().save_pretrained(tmp_path)
    sizes, model = table_sizes(tmp_path), case.model()
    assert sizes.tokens == model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        model(torch.full((1, sizes.positions or 100), sizes.tokens - 1))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.tensor([[sizes.tokens]]))
        if sizes.positions is not None:
            with pytest.raises((IndexError, RuntimeError)):
                model(torch.ones(1, sizes.positions + 1, dtype=torch.int64))


def test_a_table_that_is_larger_than_the_tokenizer_counts(tmp_path: Path) -> None:
    model = CASE_BY_NAME["llama"].model()
    model.resize_token_embeddings(128)
    model.save_pretrained(tmp_path)
    assert table_sizes(tmp_path).tokens == 128


@pytest.mark.parametrize(
    ("name", "wanted", "before", "longest"),
    [
        ("llama", 1024, 7, 57),
        ("llama", 9, 0, 9),
        ("gpt2", 1024, 0, 64),
        ("bloom", 999, 7, 999),
    ],
)
def test_sequences_are_bounded_by_what_the_model_has_room_for(
    tmp_path: Path, name: str, wanted: int, before: int, longest: int
) -> None:
    CASE_BY_NAME[name].config().save_pretrained(tmp_path)
    assert table_sizes(tmp_path).longest(wanted, before) == longest
