"""A new app: a folder whose `pyproject.toml` has every key of a run, each with what it sets.

Its `fab-include` names the two files that leave the machine, so that data put beside them stays.
"""

import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path

from flower_split.apps.folder.app import CLIENT_APP, SERVER_APP, app_name
from flower_split.apps.folder.archive import PROJECT
from flower_split.apps.folder.overrides import Value
from flower_split.apps.key_reference import field_docs, owner_of
from flower_split.config.run_config import run_keys
from flower_split.data.examples import proposed_keys
from flower_split.data.reading.bad_rows import SKIP, BadRows
from flower_split.data.sources import load_examples
from flower_split.errors import ConfigError, FlowerSplitError

TRIAL: Mapping[str, Value] = {
    "model.name": "flower_split.quickstart:base",
    "data.path": "flower_split.quickstart.corpora:silo_docstrings",
    "data.eval-fraction": 0.5,
    "data.max-examples": 120,
    "train.learning-rate": 1e-2,
    "train.local-steps": 10,
    "train.max-length": 128,
}
"""Settings of an app without a model of its own: those of a trial on a small one."""
OWN: Mapping[str, Value] = {"train.learning-rate": 2e-4}
"""Settings of an app with a model of its own."""

_HEAD = """\
# A Flower app without code: its components are the ready-made ones of flower_split, and every
# choice is a key below. `flower-split check`, `run` and `submit` read them, and so does `flwr run`;
# `-c 'key=value'` replaces any of them.

[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
description = "Split federated fine-tuning"
license = "Apache-2.0"
# flower-split itself is already installed where the app runs; naming it here would make Flower
# install it, and torch, once more for every run.
dependencies = []

[tool.setuptools]
py-modules = []

[tool.flwr.app]
publisher = "{publisher}"
# What Flower sends to the server and to every silo: these, and nothing else that lies here.
fab-include = ["/pyproject.toml", "/README.md"]

[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"
"""

_README = """\
# {name}

A federated fine-tuning with flower_split.

- `flower-split check .` says what a run would fail of, and shows examples as the model reads them.
- `flower-split run .` runs it with simulated silos on this machine, and leaves adapter, result and
  plot in `outputs/{name}`.
- `flower-split submit .` gives it to a SuperLink.

Every setting is a key in `pyproject.toml`. Data does not belong here: a silo names its own with
`data-path` in its node config. What lies beside this file does not leave the machine, because
`fab-include` in `pyproject.toml` names what does.
"""

_IGNORED = """\
# Flower leaves out of an app's archive what is named here, besides what fab-include leaves out.
data/
outputs/
*.jsonl
*.json
*.csv
*.parquet
*.safetensors
*.env
.env
"""


def fields_of(data: str) -> dict[str, str]:
    """The keys by which data on this machine is read as its fields' names say.

    None for data with a field `text`, which is the default, for data elsewhere, which would have to
    be fetched, and for what cannot be read or told: `check` says what is the matter with it.

    Args:
        data: As `data.path`.
    """
    if not data or not os.path.exists(data):
        return {}
    try:
        examples, _ = load_examples(data, bad=BadRows(SKIP))
        row = examples[0]
    except FlowerSplitError:
        return {}
    return {} if "text" in row else proposed_keys(row)


def new_app(
    folder: Path,
    *,
    model: str = "",
    data: str = "",
    publisher: str = "me",
    name: str = "",
    fields: Mapping[str, str] | None = None,
) -> list[str]:
    """Write a new app into `folder`, made if missing; returns the names of its files.

    Args:
        folder: Missing, or empty.
        model: Value of `model.name`; empty for a trial on the quickstart's.
        data: Value of `data.path`.
        publisher: Of the app, as Flower wants one.
        name: Of the app; empty for the folder's.
        fields: Keys that say what the data's fields are; see `fields_of`.

    Raises:
        ConfigError: the folder has something in it, or cannot be written.
    """
    name = name or app_name(folder)
    settings = dict(OWN if model or data else TRIAL)
    settings |= {"model.name": model or TRIAL["model.name"]}
    settings |= {"data.path": data, **(fields or {})} if data else {}
    files = {
        PROJECT: render_project(name, publisher, settings),
        "README.md": _README.format(name=name),
        ".gitignore": _IGNORED,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if there := sorted(path.name for path in folder.iterdir()):
            raise ConfigError(
                f"{folder} is not empty ({there[0]}{', …' if there[1:] else ''}): name a new folder"
            )
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from error
    return list(files)


def render_project(name: str, publisher: str, settings: Mapping[str, Value]) -> str:
    """The `pyproject.toml` of an app, with every key of a run.

    Args:
        name: The app's.
        publisher: The app's.
        settings: Values that are not the defaults.
    """
    docs = field_docs()
    page = [_HEAD.format(name=name, publisher=publisher, server=SERVER_APP, client=CLIENT_APP)]
    section: str | None = None
    # A key of the whole would belong to the section above it.
    for key in sorted(run_keys().values(), key=lambda one: one.section != ""):
        if key.section != section:
            section = key.section
            table = section.replace("_", "-")
            page.append(f"\n[tool.flwr.app.config{'.' * bool(table)}{table}]\n")
        default = "" if key.default is MISSING else key.default
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        value = settings.get(key.key, default)
        text = docs[owner_of(key.section)][key.field].replace("\\|", "|")
        page += [f"# {line}\n" for line in textwrap.wrap(text, 96)]
        page.append(f"{key.key.rpartition('.')[2]} = {_literal(value)}\n")
    return "".join(page)


def _literal(value: Value) -> str:
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
