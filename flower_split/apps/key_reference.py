"""The table of all run-config and node-config keys, written from their own docstrings.

::

    python -m flower_split.apps.key_reference > docs/run-config.md
"""

import ast
import inspect
import itertools
import re
import sys
from dataclasses import MISSING, fields
from typing import Any

from flower_split.client import node_config
from flower_split.config import sections
from flower_split.config.keys import OWN_PREFIX, Key
from flower_split.config.run_config import OPTION_PREFIX, run_keys
from flower_split.strategies import INNER_STRATEGIES
from flower_split.strategies.inner import strategy_options

_TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false"}

_HEAD = f"""# Run-config keys

Every key of a run, as in `[tool.flwr.app.config]` of an app's `pyproject.toml` and in
`flwr run -c 'key=value'`. Flower takes with `-c` only keys that the `pyproject.toml` has. An
unknown key, a wrong type or a contradiction ends the run at its start, with all problems at once.
Keys that begin with `{OWN_PREFIX}` are the app's own and are not checked.

This page is written by `python -m flower_split.apps.key_reference`.
"""

_OPTIONS_HEAD = """
## Options of single strategies

Numeric and boolean arguments of the strategy that `strategy.name` chooses.

| strategy | key | default |
|---|---|---|
"""

_NODE_HEAD = f"""
## The silo's node config

What a silo's own operator decides, as in `flower-supernode --node-config 'silo="north"
data-path="/data/north.jsonl"'`. An unknown key or a wrong type fails the silo, with all problems
at once. Keys that begin with `{OWN_PREFIX}` are the app's own and are not checked.

"""


def render() -> str:
    """The page as Markdown."""
    page, section = [_HEAD], None
    docs = field_docs()
    for key in run_keys().values():
        if key.section != section:
            section = key.section
            owner = docs[owner_of(section)]
            page.append(f"\n## {section.replace('_', '-') or 'The run'}\n\n{owner['']}\n\n{_TABLE}")
        entries = "names" if key.type == tuple[str, ...] else "numbers"
        words = _TYPES.get(key.type, f"text, {entries} with commas")
        text = docs[owner_of(key.section)][key.field]
        page.append(f"| `{key.key}` | {words} | {_default(key)} | {text} |\n")
    page.append(_OPTIONS_HEAD)
    for name, make in INNER_STRATEGIES.items():
        for option, parameter in strategy_options(make).items():
            default = "*required*" if parameter.default is parameter.empty else parameter.default
            key_name = f"{OPTION_PREFIX}{option.replace('_', '-')}"
            page.append(f"| {name} | `{key_name}` | {default} |\n")
    page += [_NODE_HEAD, _TABLE]
    for entry in fields(node_config.NodeConfig):
        kind = type(entry.default)
        words = "text" if isinstance(entry.default, str) else _TYPES.get(kind, "whole number")
        default = f"`{entry.default}`" if entry.default else "empty"
        text = docs["NodeConfig"][entry.name]
        page.append(f"| `{entry.name.replace('_', '-')}` | {words} | {default} | {text} |\n")
    return "".join(page)


_TABLE = "| key | type | default | what it sets |\n|---|---|---|---|\n"


def owner_of(section: str) -> str:
    """Name of the dataclass of a section; that of the whole for an empty name."""
    if not section:
        return "SplitConfig"
    return str(inspect.get_annotations(sections.SplitConfig)[section].__name__)


def _default(key: Key) -> str:
    if key.default is MISSING:
        return "*required*"
    value: Any = ", ".join(key.default) if isinstance(key.default, tuple) else key.default
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if value != "" else "empty"


def field_docs() -> dict[str, dict[str, str]]:
    """First paragraph of every section (under the empty name) and of its fields."""
    found: dict[str, dict[str, str]] = {}
    sources = {inspect.getmodule(getattr(sections, name)) for name in sections.__all__}
    sources.add(node_config)
    bodies = [ast.parse(inspect.getsource(source)).body for source in sources if source]
    for node in itertools.chain.from_iterable(bodies):
        if isinstance(node, ast.ClassDef):
            docs = {"": _plain(ast.get_docstring(node) or "")}
            for field, text in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(text, ast.Expr)
                    and isinstance(text.value, ast.Constant)
                ):
                    docs[field.target.id] = _plain(str(text.value.value))
            found[node.name] = docs
    return found


def _plain(text: str) -> str:
    """One line, with names of Python replaced by what they stand for."""
    line = " ".join(inspect.cleandoc(text).split("\n\n")[0].split())

    def in_words(match: re.Match[str]) -> str:
        name = match[1].rpartition(".")[2]
        if name == "INNER_STRATEGIES":
            return ", ".join(f"`{key}`" for key in INNER_STRATEGIES)
        value = getattr(sections, name, None)
        if isinstance(value, tuple):
            return ", ".join(f"`{entry}`" for entry in value)
        return f"`{match[1].replace('_', '-')}`"

    return re.sub(r"`([\w.]+)`", in_words, line).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render())
