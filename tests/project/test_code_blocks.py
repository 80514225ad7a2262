"""Every code block of README and docs: Python is run, commands are read by their own parsers.

The Python blocks of a page run one after the other in one namespace, as pasted, after those of its
commands that make keys; only the port 9443 is replaced by a free one.
"""

import re
import shlex
import socket
import tomllib
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import typer.main
from flwr.common.config import flatten_dict, parse_config_args
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from typer.testing import CliRunner

from flower_split.apps import simulate
from flower_split.apps.cli import cli
from flower_split.apps.folder.overrides import parse_overrides, rendered
from flower_split.client.node_config import NodeConfig
from flower_split.config.run_config import run_keys

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "examples").glob("*/README.md"))]
PORT = "9443"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block."""

    path: Path
    line: int
    language: str
    text: str


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [
        Block(path=path, line=text[: m.start()].count("\n") + 1, language=m[1], text=m[2])
        for m in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    ]


def in_language(paths: list[Path], *languages: str) -> list[Block]:
    return [block for path in paths for block in blocks(path) if block.language in languages]


def name_of(thing: Block | Path | str) -> str:
    if isinstance(thing, Block):
        return f"{thing.path.relative_to(ROOT).as_posix()}:{thing.line}"
    return thing.relative_to(ROOT).as_posix() if isinstance(thing, Path) else thing


@pytest.mark.medium
@pytest.mark.parametrize(
    "path", [page for page in PAGES if in_language([page], "python")], ids=name_of
)
def test_python_runs_as_pasted(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in in_language([path], "bash"):
        for command in commands(block.text):
            if command.startswith("flower-split keys "):
                words = shlex.split(command, comments=True)[1:]
                assert CliRunner().invoke(cli, words).exit_code == 0, command
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    namespace = {"__name__": "pasted"}
    printed = StringIO()
    with redirect_stdout(printed):
        for block in in_language([path], "python"):
            # Where a fault is said to be is where the page has it.
            source = "\n" * block.line + block.text.replace(PORT, port)
            exec(compile(source, str(path), "exec"), namespace)
    if path.name == "README.md":
        losses = [float(line.split()[1]) for line in printed.getvalue().splitlines()]
        assert losses[-1] < losses[0] / 2


def test_languages_are_known():
    """A block in another language would be run by nobody; one without is a picture."""
    assert {block.language for path in PAGES for block in blocks(path)} <= {"", "python", "bash"}


def commands(text: str) -> list[str]:
    joined = re.sub(r"\\\n\s*", " ", text)
    found, begun = [], ""
    for line in joined.splitlines():
        begun = f"{begun}\n{line}" if begun else line.removeprefix("$ ")
        if begun.strip() and is_whole(begun):
            found.append(begun)
        if not begun.strip() or is_whole(begun):
            begun = ""
    return found


def is_whole(command: str) -> bool:
    """Whether its quotes are closed."""
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True


COMMANDS = [
    pytest.param(command, id=f"{name_of(block)}-{number}")
    for block in in_language([*PAGES, *EXAMPLES], "bash")
    for number, command in enumerate(commands(block.text))
    if not command.startswith("#")
]
TABLED = sorted(
    {
        command
        for path in [*PAGES, *EXAMPLES]
        for command in re.findall(
            r"`((?:python |pytest |make |flwr run examples|flower-split |tensorboard -)[^`]+)`",
            path.read_text(encoding="utf-8"),
        )
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_blocks_are_accepted(command):
    accept(shlex.split(command, comments=True))


@pytest.mark.parametrize("command", TABLED)
def test_commands_in_the_text_are_accepted(command):
    accept(shlex.split(command, comments=True))


def accept(words: list[str]) -> None:
    """Raise unless the command would be understood; it is not run."""
    program, *arguments = words
    match program:
        case "make":
            accept_make(arguments)
        case "pip":
            assert arguments[0] == "install"
            accept_requirement(arguments[-1])
        case "flwr":
            accept_flwr(arguments)
        case "flower-supernode":
            options = _parse_args_run_supernode().parse_args(
                arguments if "--insecure" in arguments else ["--insecure", *arguments]
            )
            NodeConfig.read(parse_config_args([options.node_config]))
        case "flower-split":
            accept_flower_split(arguments)
        case "pytest":
            accept_pytest(arguments)
        case "python":
            accept_python(arguments)
        case "tensorboard":
            assert arguments[0] == "--logdir"
        case _:
            path = ROOT / program
            assert path.is_file(), f"{program}: no command that this test knows, and no file"


def accept_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, flags=re.MULTILINE))
    for argument in arguments:
        name, is_setting, _ = argument.partition("=")
        assert name in (variables if is_setting else targets), argument


def accept_requirement(wanted: str) -> None:
    extra = re.fullmatch(r"flower-split(?:\[([\w,]+)\])?", wanted)
    if extra is None:
        assert (ROOT / wanted / "pyproject.toml").is_file(), wanted
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(filter(None, (extra[1] or "").split(","))) <= set(project["optional-dependencies"])


def accept_flwr(arguments: list[str]) -> None:
    from flwr.cli.app import app

    context = typer.main.get_command(app).make_context("flwr", list(arguments))
    if arguments[0] != "run":
        return
    run = typer.main.get_command(app).commands["run"]
    given = run.make_context("run", arguments[1:], parent=context).params
    accept_run_config(Path(str(given["app"])), given["run_config_overrides"] or [])


def accept_run_config(app: Path, settings: list[str]) -> None:
    """The app exists, and every key that is set is one of a run's and one of the app's."""
    file = ROOT / app / "pyproject.toml"
    assert file.is_file(), app
    table = tomllib.loads(file.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    keys = set(run_keys()) | set(flatten_dict(table))
    for name, value in parse_config_args(list(settings)).items():
        assert name in keys, name
        if name in run_keys() and run_keys()[name].type is str:
            assert isinstance(value, str), name


def accept_flower_split(arguments: list[str]) -> None:
    """Its own parser takes the command; an app that the repository has takes the settings."""
    command = typer.main.get_command(cli)
    assert arguments[0] in command.commands, arguments
    if len(arguments) < 2:
        return
    given = command.commands[arguments[0]].make_context(arguments[0], arguments[1:]).params
    settings = parse_overrides(given.get("run_config") or [])
    app = Path(str(given.get("app") or given.get("folder") or "."))
    if app.parts[:1] == ("examples",):
        accept_run_config(app, [rendered(settings)])
    else:
        assert [key for key in settings if key not in run_keys()] == []


def accept_pytest(arguments: list[str]) -> None:
    paths = [word for word in arguments if word.startswith("tests/")]
    assert paths
    assert all((ROOT / path).exists() for path in paths), arguments
    # Otherwise it would run what the default suite takes of them, and not what a figure rests on.
    assert arguments[:2] == ["-m", ""], arguments


def accept_python(arguments: list[str]) -> None:
    if arguments[0] == "-c":
        compile(arguments[1], "-c", "exec")
        return
    if arguments[0] != "-m":
        script = Path(arguments[0])
        found = ROOT / script if script.parent.name else ROOT / "examples/deployment" / script
        assert found.is_file(), script
        text = found.read_text(encoding="utf-8")
        options = [word for word in arguments[1:] if word.startswith("--")]
        known = text + "".join(
            other.read_text(encoding="utf-8") for other in found.parent.rglob("*.py")
        )
        assert [option for option in options if not has_option(known, option)] == []
        return
    module, *rest = arguments[1:]
    assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    if module == "flower_split.apps.simulate":
        given = simulate.make_parser().parse_args(rest)
        accept_run_config(given.app, given.run_config)
    elif module == "flower_split.apps.cli":
        accept_flower_split(rest)


def has_option(source: str, option: str) -> bool:
    """Whether a script declares an option: by its name, or as a parameter that Typer names."""
    parameter = option.removeprefix("--").replace("-", "_")
    return f'"{option}"' in source or bool(re.search(rf"^    {parameter}: ", source, re.MULTILINE))


def test_the_custom_loop_is_the_one_that_its_page_shows():
    folder = ROOT / "examples" / "custom_loop"
    code = (folder / "custom_loop" / "client_app.py").read_text(encoding="utf-8")
    (block,) = in_language([folder / "README.md"], "python")
    lines = [line.strip() for line in block.text.splitlines()]
    assert "\n".join(lines) in "\n".join(line.strip() for line in code.splitlines())


def test_the_files_that_the_architecture_names_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", text):
        assert (ROOT / name).exists() or (ROOT / "flower_split" / name).exists(), name


@pytest.mark.medium
def test_the_commands_for_a_new_app_do_what_the_page_says(tmp_path, monkeypatch):
    """The first block of the page, run; its paths are replaced by what is there."""
    first = in_language([ROOT / "docs/command-line.md"], "bash")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text('{"text": "Returns the sum of the values."}\n' * 20)
    base = "flower_split.quickstart:base"
    text = first.text.replace("/models/qwen", base).replace("/data/", f"{tmp_path}/")
    for command in commands(text):
        done = CliRunner().invoke(cli, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
    assert "3: " in done.stdout and "with a loss" in done.stdout
