"""Examples: fields that are missing or no text are named with their place."""

from typing import Any

import pytest

from flower_split.data.examples import Examples
from flower_split.errors import DataError

ROWS: list[dict[str, Any]] = [{"text": "a"}, {"text": "b", "id": 7}, {"text": "c"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"body": "x", "id": 1}, "no field 'text'; the fields there are 'body', 'id'"),
        ({}, "no field 'text'; the fields there are none"),
        ({"text": None}, "field 'text' is null"),
        ({"text": 3}, "field 'text' must be text, not int"),
        ({"text": ["x"]}, "field 'text' must be text, not list"),
        ({"text": " \n"}, "field 'text' is empty text"),
        ({"text": "\ud83d"}, "half of a surrogate pair at character 0"),
        ({"prompt": "a", "completion": "b"}, "Set data.prompt to 'prompt' and data.text to 'comp"),
        ({"question": "a", "answer": "b"}, "Set data.prompt to 'question' and data.text to 'ans"),
        ({"instruction": "a", "output": "b"}, "For instructions set data.template"),
        ({"conversations": []}, "looks like a chat: set data.messages to 'conversations'"),
        ({"chosen": "a", "rejected": "b"}, "look like preference pairs"),
        ({f"f{i}": 1 for i in range(30)}, "'f19', …"),
    ],
)
def test_a_bad_field_is_named_with_its_place(row: dict[str, Any], message: str) -> None:
    examples = Examples.all_of([{"text": "fine"}, row], origin="here").select([1])
    with pytest.raises(DataError, match=f"^here, example 2: .*{message}"):
        examples.text(0, "text")


def test_selections_of_selections_know_their_place() -> None:
    examples = Examples.all_of(ROWS, origin="here").select([2, 1]).select([1])
    assert len(examples) == 1
    assert examples[0] is ROWS[1]
    assert examples.where(0) == "here, example 2"
    numbered = Examples(origin="f", rows=ROWS, picked=[2], unit="line", numbers=[1, 4, 9])
    assert numbered.where(0) == "f, line 9"
