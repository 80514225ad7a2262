"""Whatever is wrong with JSON or TOML is a `ValueError`, and of each reader its own error."""

from pathlib import Path

import pytest

from flower_split.adapters.reading import read_adapter_folder
from flower_split.apps.folder.archive import read_project
from flower_split.apps.folder.overrides import parse_overrides
from flower_split.audit import read_policy
from flower_split.errors import AdapterError, ConfigError, WeightsError
from flower_split.segments import load_skeleton
from flower_split.text_tables import read_json, read_toml

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "text",
    [
        *(DEEP, '{"a":' * 100_000, "{", "\x00", "1" * 5000),
        *(r'["\ud800"]', r'{"\uDFFF": 1}', b'["\xed\xa0\x80"]'),
    ],
)
def test_a_text_that_is_no_json(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_json(text)


@pytest.mark.parametrize(
    "text", [f"a = {DEEP}", "a = " + "{b = " * 100_000, "a", "a = " + "1" * 5000]
)
def test_a_text_that_is_no_toml(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_toml(text)


def test_values_are_read() -> None:
    assert read_json(b'{"a": [1, null]}') == {"a": [1, None]}
    assert read_json(r'["\ud83d\ude00", "\\ud800"]') == ["\U0001f600", r"\ud800"]
    assert read_toml("[a]\nb = 1.5") == {"a": {"b": 1.5}}


def test_each_reader_says_which_file_it_is(tmp_path: Path) -> None:
    toml = tmp_path / "pyproject.toml"
    toml.write_text(f"a = {DEEP}")
    model = tmp_path / "model"
    model.mkdir()
    for path in (model / "config.json", tmp_path / "adapter_config.json"):
        path.write_text(DEEP)
    for kind, read in (
        (ConfigError, lambda: read_project(tmp_path)),
        (ConfigError, lambda: parse_overrides([str(toml)])),
        (ConfigError, lambda: read_policy(toml)),
        (AdapterError, lambda: read_adapter_folder(tmp_path)),
        (WeightsError, lambda: load_skeleton(str(model))),
    ):
        with pytest.raises(kind) as caught:
            read()
        assert str(tmp_path) in str(caught.value)
        assert "nested too deeply" in str(caught.value)


def test_a_number_of_thousands_of_digits_on_the_command_line() -> None:
    with pytest.raises(ConfigError, match="seed"):
        parse_overrides(["seed=" + "9" * 5000])


def test_a_policy_at_no_path() -> None:
    with pytest.raises(ConfigError, match="null byte"):
        read_policy(Path("a\0b"))
