"""A completed app: a copy that has the keys which a run sets and its `pyproject.toml` lacks.

Flower replaces only keys that an app's `pyproject.toml` has.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from flower_split.apps.folder.app import App
from flower_split.apps.folder.archive import PROJECT, archived, read_project
from flower_split.apps.folder.overrides import Settings, parse_overrides
from flower_split.config.run_config import run_keys
from flower_split.errors import ConfigError


@contextmanager
def completed(app: Path, given: Sequence[str]) -> Iterator[Path]:
    """The folder of `app`, or for the time of the block of a copy that takes every setting.

    A copy is made of an app whose components are the ready-made ones, where it lacks a key of a
    run that is set. What cannot be read, or is no key of a run, is left to whoever reads it next.

    Args:
        app: Folder with the app's `pyproject.toml`.
        given: Overrides, as of `-c`.
    """
    lacking = _lacking(app, given)
    if not lacking:
        yield app
        return
    with tempfile.TemporaryDirectory(prefix="flower-split-app-") as folder:
        copy = Path(folder) / "app"
        for path in archived(app):
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(app / path, copy / path)
        project = read_project(app)
        config = project["tool"]["flwr"]["app"].setdefault("config", {})
        for key, value in lacking.items():
            *sections, name = key.split(".")
            table = config
            for section in sections:
                table = table.setdefault(section, {})
            table[name] = value
        (copy / PROJECT).write_text(tomli_w.dumps(project), encoding="utf-8")
        yield copy


def _lacking(app: Path, given: Sequence[str]) -> Settings:
    """The keys of a run that are set and the app lacks, with the values that they are set to."""
    try:
        read, overrides = App.read(app), parse_overrides(given)
    except ConfigError:
        return {}
    if not read.is_ready_made or _dotted(read_project(app)):
        return {}
    keys = run_keys()
    return {key: value for key, value in overrides.items() if key in keys and not read.reads(key)}


def _dotted(project: Mapping[str, Any]) -> bool:
    """Whether the app has quoted keys with dots, which could name what a section names too."""
    config = project["tool"]["flwr"]["app"].get("config", {})
    return any("." in key for key in config)
