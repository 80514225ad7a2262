"""Submitted runs, remembered at the machine that gave them to a SuperLink, to be resumed from it.

A file a run, named by Flower's id of it, in the state folder of this user alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from flower_split.apps.flower.flwr_command import FlwrError
from flower_split.apps.folder.overrides import Settings
from flower_split.private_files import make_folder, read_whole, write_whole
from flower_split.text_tables import read_json
from flower_split.user_folders import user_folder

FOLDER = "submitted"


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What was given to a SuperLink."""

    app: Path
    """The app's folder, absolute."""
    overrides: Settings
    """What the run set otherwise than the app."""


def remember(run_id: str, submitted: Submitted) -> None:
    """Keep what the run of that id was made of.

    Raises:
        OSError: it cannot be written.
    """
    content = {"app": str(submitted.app), "overrides": submitted.overrides}
    write_whole(make_folder(_folder()) / _file(run_id), json.dumps(content, indent=2).encode())


def recall(run_id: str, name: str) -> Submitted:
    """What the run of that id was made of.

    Args:
        run_id: Flower's.
        name: What the error calls the run.

    Raises:
        FlwrError: it was not submitted from here, or what was kept cannot be read.
    """
    path = _folder() / _file(run_id)
    try:
        content = read_json(read_whole(path))
        overrides = content["overrides"]
        if not isinstance(overrides, dict):
            raise TypeError(f"overrides are {type(overrides).__name__}")
        return Submitted(app=Path(content["app"]), overrides=overrides)
    except FileNotFoundError:
        raise FlwrError(
            f"{name} was not submitted from here by flower-split submit, so its app is not known: "
            "flower-split submit APP -c resume=true, with the settings that it had, resumes it"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FlwrError(
            f"{path}, which says what {name} was made of, cannot be read: {error}"
        ) from error


def _folder() -> Path:
    return user_folder("XDG_STATE_HOME", ".local/state", key="XDG_STATE_HOME") / FOLDER


def _file(run_id: str) -> str:
    return f"{int(run_id)}.json"
