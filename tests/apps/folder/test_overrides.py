"""Overrides: read as Flower reads them, merged key by key, and passed on unharmed."""

from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from hypothesis import given
from hypothesis import strategies as st

from flower_split.apps.folder.overrides import flat, override_problems, parse_overrides, rendered
from flower_split.errors import ConfigError

APP = {"num-server-rounds": 5, "data.path": "", "data.text": "text", "lora.r": 8}


@pytest.mark.parametrize(
    "text",
    [
        "a=1 b=2.5 c=true",
        'data.path="/x y.jsonl" data.text=\'an "answer"\'',
        'sample-prompt="a\\nb" lora.r=4',
    ],
)
def test_what_flower_reads_is_read_alike(text: str) -> None:
    assert parse_overrides([text]) == parse_config_args([text])


def test_options_merge_key_by_key_and_the_last_value_counts() -> None:
    given = ['data.path="a" lora.r=4', 'data.text="b"', "lora.r=2"]
    assert parse_overrides(given) == {"data.path": "a", "data.text": "b", "lora.r": 2}


def test_a_file_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "more.toml"
    file.write_text("num-server-rounds = 1\n[lora]\nr = 4\n")
    assert parse_overrides([str(file), "lora.r=2"]) == {"num-server-rounds": 1, "lora.r": 2}
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_overrides([str(tmp_path / "none.toml")])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("strategy.name=fedadam", "text needs quotes, such as -c 'strategy.name=\"fedadam\"'"),
        ("num-server-rounds = 5", "'num-server-rounds = 5' is no setting"),
        ("lora.r=4 and more", "'and more' is no setting"),
        ('data.path="a"b', "expected text in quotes"),
        ("lora.ranks=[1,2]", "several values are one text with commas"),
        ("lora.r=0x", "expected text in quotes"),
    ],
)
def test_what_flower_would_drop_or_answer_with_a_code_is_an_error(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides([text])
    assert said in str(caught.value)


def test_unknown_keys_are_all_named_with_what_to_do() -> None:
    given = {"lora.rr": 1, "train.local-steps": 3, "data.text": "answer"}
    assert override_problems(APP, given) == [
        "-c lora.rr: the app has no such key; did you mean 'lora.r'?",
        "-c train.local-steps: Flower replaces only keys that the app's pyproject.toml has; add "
        "local-steps to [tool.flwr.app.config.train] there",
    ]
    assert override_problems(APP, {"lora.r": 4}) == []


@pytest.mark.medium
@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9-]{0,8}(\.[a-z][a-z0-9-]{0,8})?", fullmatch=True),
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t")),
            st.integers(-(2**60), 2**60),
            st.booleans(),
            st.floats(allow_nan=False, allow_infinity=False, width=32),
        ),
        max_size=4,
    )
)
def test_any_value_reaches_flower_as_it_was_given(values: dict[str, object]) -> None:
    # Of `a` and `a.b` one would have to be a table.
    keys = [key for key in values if not any(o.startswith(f"{key}.") for o in values)]
    kept = {key: values[key] for key in keys}
    text = rendered(kept)  # type: ignore[arg-type]
    assert parse_config_args([text]) == kept
    assert parse_overrides([text]) == kept


def test_a_list_is_no_setting() -> None:
    with pytest.raises(ConfigError, match=r"ranks must be text.*commas"):
        flat({"lora": {"ranks": [1, 2]}})
