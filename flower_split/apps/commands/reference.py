"""The page of all commands with their arguments and options, written from the commands themselves.

::

    python -m flower_split.apps.commands.reference > docs/commands.md
"""

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import typer

_HEAD = """# All commands

What `--help` says of every command, on one page; [the command line](command-line.md) says how they
belong together. Arguments come first in each table, in their order, then options.

This page is written by `python -m flower_split.apps.commands.reference`.
"""


def render() -> str:
    """The page as Markdown."""
    # Imported here: the commands are in a module that imports this package.
    from flower_split.apps.cli import cli

    parts = [_HEAD]
    for name, command in _commands("flower-split", typer.main.get_command(cli)):
        parts.append(_section(name, command))
    return "\n".join(parts)


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for word in sorted(inner):
        yield from _commands(f"{name} {word}", inner[word])


def _section(name: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    lines = [f"## {name}", "", inspect.cleandoc(command.help or ""), ""]
    rows = [(_cell(f"`{_placeholder(one)}`"), one) for one in arguments]
    rows += [(_flags(one), one) for one in options]
    if rows:
        lines += ["| | default | |", "|---|---|---|"]
        lines += [f"| {shown} | {_default(one)} | {_cell(one.help or '')} |" for shown, one in rows]
        lines.append("")
    return "\n".join(lines)


def _placeholder(argument: Any) -> str:
    name = (argument.metavar or argument.name).upper().replace("_", "-").strip("[]")
    many = "…" if argument.nargs == -1 else ""
    return f"{name}{many}" if argument.required else f"[{name}{many}]"


def _flags(option: Any) -> str:
    flags = ", ".join(f"`{flag}`" for flag in option.opts)
    if option.secondary_opts:
        flags += " / " + ", ".join(f"`{flag}`" for flag in option.secondary_opts)
    kind = "" if option.is_flag else f" {option.type.name.upper()}"
    return flags + kind + (", several times" if option.multiple else "")


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "must be given"
    if value is None or value == () or callable(value) or value == "":
        return ""
    if isinstance(value, bool):
        return "on" if value else ""
    return f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render())
