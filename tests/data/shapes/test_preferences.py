"""Preference pairs: a prompt with two answers, as texts or as chats."""

from typing import Any

import pytest

from flower_split.config.data import DataConfig
from flower_split.data import Examples, load_silo, preferences
from flower_split.data.reading.bad_rows import BadRows
from flower_split.errors import DataError

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello"}
BAD = {"role": "assistant", "content": "What"}


def pairs(*rows: Any, bad: BadRows | None = None, **fields: str) -> list[Any]:
    found = preferences(
        Examples.all_of(list(rows), origin="here"),
        DataConfig(**fields),  # type: ignore[arg-type]
        bad,
    )
    return [tuple(one.values()) for one in found]


def test_a_prompt_of_its_own_is_joined_as_for_training() -> None:
    row = {"q": "Who?", "chosen": "Me.", "rejected": "You."}
    assert pairs(row, prompt="q") == [("Who?\n", "Me.", "You.")]
    chats = {"q": [USER], "chosen": [GOOD], "rejected": [BAD]}
    assert pairs(chats, prompt="q") == [([USER], [GOOD], [BAD])]


def test_without_one_it_is_what_both_begin_with() -> None:
    row = {"chosen": "Human: Hi\n\nBot: hello", "rejected": "Human: Hi\n\nBot: here"}
    assert pairs(row) == [("Human: Hi\n\nBot: ", "hello", "here")]
    assert pairs({"chosen": "yes", "rejected": "yet"}) == [("", "yes", "yet")]
    chats = {"better": [USER, GOOD], "worse": [USER, BAD]}
    found = pairs(chats, chosen="better", rejected="worse")
    assert found == [([USER], [GOOD], [BAD])]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "a", "rejected": "a"}, "both answers are the same"),
        ({"chosen": "a", "rejected": [USER]}, "one answer is text and the other one a chat"),
        ({"chosen": "a b ", "rejected": "a b c"}, "one answer is the beginning of the other"),
        ({"chosen": "a"}, "no field 'rejected'"),
        ({"chosen": "a", "rejected": 3}, "field 'rejected' must be text, not int"),
        ({"chosen": "a", "rejected": None}, "field 'rejected' is null"),
    ],
)
def test_what_is_no_pair_is_told_or_counted(row: Any, said: str) -> None:
    with pytest.raises(DataError, match=f"here, example 1: .*{said}"):
        pairs(row)
    bad = BadRows("skip")
    assert len(pairs({"chosen": "x", "rejected": "y"}, row, bad=bad)) == 1
    assert bad.places == ["example 2"]


def test_a_ready_made_run_says_what_to_do_with_them(tokenizer: Any) -> None:
    rows = [{"chosen": "the silo holds", "rejected": "the trunk"}] * 4

    def load(**fields: Any) -> Any:
        return load_silo(
            DataConfig(**fields),
            tokenizer,
            partition_id=None,
            num_partitions=None,
            max_length=16,
            seed=0,
            source=rows,
        )

    with pytest.raises(DataError, match=r"preference pairs, for which .* ClientApp of your own"):
        load()
    assert load(text="chosen", eval_fraction=0.25).num_examples == 3
