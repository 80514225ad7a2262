"""The statuses of all commands: 2 where one was called wrongly, 1 where it did not succeed."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from flower_split.apps.cli import cli

OWN = ("--client-memory=much", "--bandwidth=fast", "-c=lora.r", "--trunk=here", "--field=input")
OWN += ("--address=nowhere", "--trunk-ca=ca.pem")
"""Options that the commands themselves read, with values that none of them can have."""
AT_A_SUPERLINK = {"status", "logs", "stop", "resume"}
"""Commands that ask Flower's own."""
FINDING = {"check", "run", "submit"}
"""Commands that say all that they have found on standard output."""


def commands(group: click.Command | None = None, *names: str) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    group = group or typer.main.get_command(cli)
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, *names, name)
    else:
        yield names


def found(words: tuple[str, ...]) -> click.Command:
    command = typer.main.get_command(cli)
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


def call(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stderr


def more(words: tuple[str, ...]) -> list[str]:
    """Options that are required, or without which a command would wait."""
    return {("export",): ["--out", "made"], ("chat",): ["--prompt", "Who?"]}.get(words, [])


ALL = [pytest.param(words, id="-".join(words)) for words in commands()]


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))


@pytest.mark.medium
@pytest.mark.parametrize("words", ALL)
def test_a_command_that_is_called_wrongly_ends_with_2(words: tuple[str, ...]) -> None:
    assert call(*words, "--nonsense")[0] == 2
    params = found(words).params
    needed = ["there" for one in params if one.param_type_name == "argument" and one.required]
    if needed:
        assert call(*words)[0] == 2
    options = {name for one in params for name in one.opts}
    for given in OWN:
        name = given.partition("=")[0]
        if name in options:
            status, said = call(*words, *needed, *more(words), *given.split("=", 1))
            assert status == 2, (given, said)
            assert said.startswith("error: "), said


@pytest.mark.parametrize("command", sorted(AT_A_SUPERLINK))
def test_flower_is_not_made_to_start_a_superlink_of_its_own(command: str, tmp_path: Path) -> None:
    for given in ("", '[superlink]\ndefault = "mine"\n[superlink.mine]\naddress = ":local:"\n'):
        if given:
            (tmp_path / "flwr").mkdir()
            (tmp_path / "flwr/config.toml").write_text(given)
        status, said = call(command)
        assert status == 1 and "names no SuperLink of a deployment" in said


@pytest.mark.parametrize("command", sorted(AT_A_SUPERLINK))
def test_a_folder_is_no_run_of_a_deployment(command: str, tmp_path: Path) -> None:
    status, said = call(command, str(tmp_path))
    assert status == 2 and "a run on this machine" in said and str(tmp_path) in said


@pytest.mark.medium
@pytest.mark.parametrize("words", ALL)
def test_what_is_missing_or_broken_ends_with_1_and_one_message(words: tuple[str, ...]) -> None:
    Path("there").write_text("neither an app, nor a run, nor a model")
    arguments = [one for one in found(words).params if one.param_type_name == "argument"]
    status, said = call(*words, *["there" for one in arguments], *more(words))
    assert status == 1, said
    assert said.startswith("error: ") or words[0] in FINDING
    assert said.count("error: ") <= 1 and "Traceback" not in said
