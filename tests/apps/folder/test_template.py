"""A new app: every key, a run config that is accepted, and data beside it that stays."""

import io
import itertools
import json
import shlex
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate

from flower_split.apps.folder.app import App, app_name
from flower_split.apps.folder.template import fields_of, new_app
from flower_split.config.run_config import read_run_config, run_keys
from flower_split.errors import ConfigError
from flower_split.strategies import inner_problems


def test_a_new_app_has_every_key_with_what_it_sets(tmp_path: Path) -> None:
    folder = tmp_path / "my-app"
    assert new_app(folder) == ["pyproject.toml", "README.md", ".gitignore"]
    app = App.read(folder)
    assert app.name == "my-app" and app.is_ready_made and app.trains_as_configured
    assert set(app.settings) == set(run_keys())
    config = read_run_config(app.settings, check_strategy=inner_problems)
    assert config.model.name == "flower_split.quickstart:base"
    _, warnings = load_and_validate(folder / "pyproject.toml")
    assert warnings == []
    text = (folder / "pyproject.toml").read_text()
    lines = text[text.index("[tool.flwr.app.config]") :].splitlines()
    for above, line in itertools.pairwise(lines):
        if " = " in line and not line.startswith("#"):
            assert above.startswith("# "), line
    assert max(map(len, lines)) <= 100


def test_data_put_beside_a_new_app_stays(tmp_path: Path) -> None:
    folder = tmp_path / "my-app"
    new_app(folder)
    (folder / "data").mkdir()
    for name in ("data/notes.jsonl", "patients.json", "notes.md", "more.yaml", "code.py"):
        (folder / name).write_text("a patient\n")
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder))) as bundle:
        assert {"pyproject.toml", "README.md", ".info/CONTENT"} == set(bundle.namelist())


def test_a_model_and_data_of_ones_own(tmp_path: Path) -> None:
    new_app(tmp_path / "app", model="/models/qwen", data='/a "quoted" file.jsonl')
    settings = App.read(tmp_path / "app").settings
    assert settings["model.name"] == "/models/qwen"
    assert settings["data.path"] == '/a "quoted" file.jsonl'
    assert settings["train.learning-rate"] == 2e-4  # not the toy's
    assert settings["train.local-steps"] == 0


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        ({"text": "a"}, {}),
        ({"question": "a", "answer": "b"}, {"data.prompt": "question", "data.text": "answer"}),
        ({"messages": [{"role": "user"}]}, {"data.messages": "messages"}),
        (
            {"instruction": "a", "input": "", "output": "b"},
            {
                "data.template": "### Instruction:\n{instruction}\n{input}\n### Response:\n",
                "data.text": "output",
            },
        ),
        ({"chosen": "a", "rejected": "b"}, {}),
    ],
)
def test_data_with_fields_of_common_names_is_read_so(
    tmp_path: Path, row: dict[str, object], keys: dict[str, str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert fields_of(str(path)) == keys
    new_app(tmp_path / "app", data=str(path), fields=keys)
    settings = App.read(tmp_path / "app").settings
    assert {key: settings[key] for key in keys} == keys


def test_data_that_cannot_be_read_is_left_to_the_check(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('a,b\n"open')
    for data in ("", "missing.jsonl", "owner/name", "module:function", str(tmp_path / "rows.csv")):
        assert fields_of(data) == {}


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty \(thesis.txt\)"):
        new_app(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        new_app(tmp_path / "file")


@pytest.mark.parametrize(
    ("folder", "name"),
    [("my_app", "my-app"), ("2 apps!", "apps"), ("a" * 40, "a" * 32), ("é app", "app")],
)
def test_the_name_is_one_that_flower_accepts(folder: str, name: str) -> None:
    assert app_name(Path("/tmp") / folder) == name


def test_a_name_without_a_letter_is_refused() -> None:
    with pytest.raises(ConfigError, match="must have a letter"):
        app_name(Path("/tmp/123"))


def test_the_readme_names_commands_that_there_are(tmp_path: Path) -> None:
    import typer.main

    from flower_split.apps.cli import cli

    new_app(tmp_path / "app")
    text = (tmp_path / "app/README.md").read_text()
    commands = [part for part in text.split("`") if part.startswith("flower-split ")]
    assert len(commands) == 3
    known = typer.main.get_command(cli).commands  # type: ignore[attr-defined]
    for command in commands:
        name, *arguments = shlex.split(command)[1:]
        known[name].make_context(name, arguments)
    assert tomllib.loads((tmp_path / "app/pyproject.toml").read_text())
