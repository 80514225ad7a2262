"""An app: what its `pyproject.toml` says of it, with the settings of a run."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from flower_split.apps.folder.archive import PROJECT, read_project
from flower_split.apps.folder.overrides import (
    WHERE,
    Settings,
    flat,
    override_problems,
    parse_overrides,
)
from flower_split.config.problems import raise_problems
from flower_split.errors import ConfigError

SERVER_APP = "flower_split.apps.server_app:app"
CLIENT_APP = "flower_split.apps.client_app:app"
"""The ready-made components."""


@dataclass(frozen=True, kw_only=True)
class App:
    """An app that Flower accepts."""

    folder: Path
    name: str
    server: str
    """Reference of its ServerApp."""
    client: str
    settings: Settings
    """Every key of its run config, with overrides in their places."""
    overrides: Settings
    """What a run sets otherwise than the app."""

    @classmethod
    def read(
        cls, folder: Path, given: Sequence[str] = (), *, unknown: list[str] | None = None
    ) -> Self:
        """The app in `folder`, with the overrides that `-c` options give.

        Args:
            folder: With its `pyproject.toml`.
            given: The `-c` options.
            unknown: Is told of overrides that the app has no key for, which are then left out of
                its settings; without it they are errors.

        Raises:
            ConfigError: with everything that Flower does not accept of it, or that is no setting.
        """
        from flwr.cli.config_utils import load_and_validate

        read_project(folder)
        try:
            project, _ = load_and_validate(folder / PROJECT)
        except Exception as error:  # Flower's are of several kinds, click's among them
            said = getattr(error, "message", "") or str(error)
            raise ConfigError(f"Flower does not accept {folder / PROJECT}: {said}") from error
        table = project["tool"]["flwr"]["app"]
        components = table["components"]
        settings, overrides = flat(table.get("config", {})), parse_overrides(given)
        problems = override_problems(settings, overrides)
        if unknown is None:
            raise_problems(problems, WHERE)
        else:
            unknown += problems
        return cls(
            folder=folder,
            name=str(project["project"]["name"]),
            server=str(components.get("serverapp", "")),
            client=str(components.get("clientapp", "")),
            settings={key: overrides.get(key, value) for key, value in settings.items()},
            overrides=overrides,
        )

    @property
    def is_ready_made(self) -> bool:
        """Whether its ServerApp is flower_split's, so that all keys are a run's."""
        return self.server == SERVER_APP

    @property
    def trains_as_configured(self) -> bool:
        """Whether its ClientApp is flower_split's, so that data and loop are what keys say."""
        return self.client == CLIENT_APP

    def reads(self, key: str) -> bool:
        """Whether a run can set `key`."""
        return key in self.settings


def app_name(folder: Path) -> str:
    """A name for an app in `folder` that Flower accepts: letters, digits and hyphens, at most 32.

    Raises:
        ConfigError: nothing of the folder's name can be in one.
    """
    words = re.sub(r"[^A-Za-z0-9]+", "-", folder.resolve().name).strip("-")
    name = re.sub(r"^[^A-Za-z]+", "", words)[:32].strip("-")
    if not name:
        raise ConfigError(
            f"no app can be named after {folder}: the folder's name must have a letter in it"
        )
    return name
