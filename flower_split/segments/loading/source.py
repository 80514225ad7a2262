"""Where a checkpoint comes from: a local folder, a folder of a package, or the Hugging Face Hub."""

import os
import re
import stat
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath

import httpx
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from flower_split.errors import WeightsError
from flower_split.user_folders import expanded

# Everything but weights: configuration, tokenizer and the index of the shards.
_SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_NESTED = ("*/*",)
_PACKAGE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([\w.-]+(?:/[\w.-]+)*)")
_ABSENT = ".no_exist"  # the folder of huggingface_hub's cache for what a commit does not have
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_OFFLINE = (
    "Check the name and, for a private or gated model, `hf auth login`. Without a network, fetch "
    "it elsewhere with `hf download` and give the folder as the model's name"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint's folder, into which weights of a hub model come when they are asked for."""

    name: str
    """As it was given to `resolve_source`."""
    folder: Path
    """Folder with configuration and tokenizer."""
    repository: str = ""
    """Hub id; empty for a folder."""

    def find(self, filename: str, *, offline_is_absent: bool = False) -> Path | None:
        """Path of a file of the checkpoint, downloaded if need be; None where there is none.

        Args:
            filename: Its path in the checkpoint.
            offline_is_absent: Take a file for absent that is not on this machine while the hub
                cannot be reached.

        Raises:
            WeightsError: the hub does not answer.
        """
        path = self.folder / filename
        if path.is_file():
            return path
        if not self.repository or self._known_absent(filename):
            return None
        try:
            # A snapshot's folder is named after its commit: every file is of the same one.
            return Path(hf_hub_download(self.repository, filename, revision=self.folder.name))
        except EntryNotFoundError as exc:
            if isinstance(exc, LocalEntryNotFoundError) and not offline_is_absent:
                raise _hub_error(self.repository, filename, exc) from exc
            return None
        except (OSError, ValueError, httpx.HTTPError) as exc:
            raise _hub_error(self.repository, filename, exc) from exc

    def _known_absent(self, filename: str) -> bool:
        """Whether the hub's library noted that this commit has no such file."""
        return (self.folder.parents[1] / _ABSENT / self.folder.name / filename).is_file()


def resolve_source(source: str | Path, revision: str = "") -> Source:
    """The checkpoint that `source` names.

    Args:
        source: A local folder; `package:folder`, a folder of an installed package, such as
            `flower_split.quickstart:base`; or else the id of a model on the hub, of which
            everything but the weights is downloaded now.
        revision: Commit, tag or branch on the hub; empty for the default branch.

    Raises:
        WeightsError: there is no such folder, package or hub model.
    """
    name = str(source)
    try:
        folder = expanded(name)
    except OSError as exc:
        raise WeightsError(f"{name!r} names no model: {exc.strerror}") from exc
    try:
        kind = folder.stat().st_mode if name else 0
    except (FileNotFoundError, NotADirectoryError):
        kind = 0
    except OSError as exc:
        raise WeightsError(f"{name!r} cannot be read: {exc.strerror}") from exc
    if stat.S_ISDIR(kind):
        if not os.access(folder, os.R_OK | os.X_OK):
            raise WeightsError(
                f"the folder {name!r} may not be read by the user of this process: give that user "
                "the right to read it, with all that is in it"
            )
        return Source(name=name, folder=folder)
    if stat.S_ISREG(kind):
        raise WeightsError(
            f"{name!r} is a file, expected a model's folder; name the folder it lies in"
        )
    if match := _PACKAGE.fullmatch(name):
        return Source(name=name, folder=_package_folder(name, match[1], match[2]))
    if isinstance(source, Path) or not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise WeightsError(
            f"there is no folder {name!r}; expected a model's folder, `package:folder`, or a hub "
            "model such as 'Qwen/Qwen3-0.6B'"
        )
    return Source(name=name, folder=_snapshot(name, revision), repository=name)


def _package_folder(name: str, package: str, inside: str) -> Path:
    if ".." in PurePosixPath(inside).parts:
        raise WeightsError(f"{name!r} leads out of its package; name a folder inside it")
    try:
        folder = files(package).joinpath(inside)
    except (ImportError, TypeError) as exc:
        raise WeightsError(
            f"{name!r} names no installed package: {exc}. Install {package}, or name a folder"
        ) from exc
    if not isinstance(folder, Path) or not folder.is_dir():
        raise WeightsError(f"the installed package {package} has no folder {inside!r} on disk")
    return folder


def _snapshot(repository: str, revision: str) -> Path:
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=list(_SMALL),
                ignore_patterns=list(_NESTED),
            )
        )
    except (OSError, ValueError, HFValidationError, httpx.HTTPError) as exc:
        what = f"revision {revision!r}" if revision else "the model"
        raise _hub_error(repository, what, exc) from exc


def _hub_error(repository: str, what: str, exc: Exception) -> WeightsError:
    reason = str(exc).strip().splitlines()
    return WeightsError(
        f"{repository!r} is no local folder, and {what} could not be fetched from the hub: "
        f"{type(exc).__name__}{': ' + reason[0] if reason else ''}. {_OFFLINE}"
    )
