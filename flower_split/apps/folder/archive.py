"""The archive of an app, Flower's FAB: which of its folder's files leave, and which must not.

Flower sends the archive to the SuperLink, and from there to every silo. By itself it takes along
whatever in the folder ends in `.py`, `.toml`, `.md`, `.yaml`, `.yml`, `.json` or `.jsonl`, data
among it. What an app needs is code, its `pyproject.toml`, a README.md and a LICENSE; anything else
is refused, unless the app names that very file.
"""

from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from flower_split.config.problems import raise_problems
from flower_split.errors import ConfigError
from flower_split.reporting.figures import in_bytes
from flower_split.text_tables import read_toml

PROJECT = "pyproject.toml"
NAMES = frozenset({PROJECT, "README.md", "LICENSE"})
"""Files that belong to an app beside its code, in any of its folders."""
CODE = ".py"
LARGEST = 1_000_000
"""Bytes of a file that can be code or text about it."""
WRITTEN = frozenset({"uv.lock"})
"""Files that Flower itself writes beside an unpacked app, where it looks for its dependencies."""
BY_NAME = frozenset({".json", ".yaml", ".yml", ".toml", ".md"})
"""Endings of files that go along where `fab-include` names the very file."""

_KINDS = {
    "examples": (
        *(".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".feather"),
        *(".db", ".sqlite", ".xlsx", ".zip", ".gz", ".zst"),
    ),
    "weights": (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".npy", ".npz"),
    "a key or certificate": (".pem", ".key", ".crt", ".cer", ".p12", ".pfx"),
    "settings with secrets": (".env",),
}


def archived(app: Path) -> dict[str, int]:
    """Every file that Flower would put into the archive of the app in folder `app`, with its bytes.

    Raises:
        ConfigError: Flower makes no archive of it.
    """
    from flwr.cli.build import get_filtered_fab_paths
    from flwr.cli.utils import collect_files, filter_paths_for_publish

    try:
        files = filter_paths_for_publish(collect_files(app.resolve()))
        paths = get_filtered_fab_paths(files, read_project(app))
    except ConfigError:
        raise
    except Exception as error:  # Flower's are of several kinds, click's among them
        said = getattr(error, "message", "") or str(error)
        raise ConfigError(f"Flower makes no archive of {app}: {said}") from error
    return {path: (app / path).stat().st_size for path in (PROJECT, *sorted(paths))}


def installed(folder: Path) -> dict[str, int]:
    """Every file of an app that was unpacked in `folder`, with its bytes.

    Without what came of it there: compiled code, and what Flower has written.
    """
    found = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {
        path: size
        for path, size in found.items()
        if path not in WRITTEN and "__pycache__" not in path.split("/")
    }


def read_project(app: Path) -> dict[str, Any]:
    """The `pyproject.toml` of the app in folder `app`.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    file = app / PROJECT
    try:
        return read_toml(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{app} holds no app: there is no {PROJECT} in it; `flower-split new DIR` makes one"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def archive_problems(files: Mapping[str, int], project: Mapping[str, Any]) -> list[str]:
    """What of an app's archive must not leave, in a sentence; nothing when all of it may.

    Args:
        files: Bytes by path, as of `archived` and `installed`.
        project: The app's `pyproject.toml`.
    """
    named = _named(project)
    refused = {path: why for path, size in files.items() if (why := _reason(path, size, named))}
    if not refused:
        return []
    listed = ", ".join(f"{path} ({in_bytes(files[path])}, {why})" for path, why in refused.items())
    kept = sorted({_pattern(path) for path in files if path not in refused})
    return [
        f"the app's archive, which goes to the SuperLink and to every silo, would hold {listed}. "
        f"An app is code, {PROJECT}, README.md and LICENSE: move the rest out of its folder, or "
        "have [tool.flwr.app] of its pyproject.toml say what goes along: "
        f"fab-include = [{', '.join(f'{chr(34)}{one}{chr(34)}' for one in kept)}]"
    ]


def check_archive(app: Path) -> dict[str, int]:
    """The files of the app's archive with their bytes, all of which may leave.

    Raises:
        ConfigError: some may not, or Flower makes no archive of the folder.
    """
    files = archived(app)
    raise_problems(archive_problems(files, read_project(app)), "the app's archive")
    return files


def check_installed(folder: Path) -> None:
    """Raise `ConfigError` where an app that was unpacked in `folder` has brought data along."""
    files = installed(folder)
    raise_problems(archive_problems(files, read_project(folder)), "the app's archive")


def _named(project: Mapping[str, Any]) -> Collection[str]:
    """The files that `fab-include` names in full."""
    table: Any = project
    for key in ("tool", "flwr", "app"):
        table = table.get(key, {}) if isinstance(table, Mapping) else {}
    patterns = table.get("fab-include", []) if isinstance(table, Mapping) else []
    return {
        one.removeprefix("/")
        for one in patterns
        if isinstance(one, str) and not set(one) & set("*?[]!") and not one.endswith("/")
    }


def _reason(path: str, size: int, named: Collection[str]) -> str:
    """Why a file must not leave; empty when it may."""
    file = PurePosixPath(path)
    ending = file.suffix.lower() or file.name.lower()
    allowed = ending == CODE or file.name in NAMES or (path in named and ending in BY_NAME)
    if allowed:
        return "too large to be code" if size > LARGEST else ""
    return next((kind for kind, endings in _KINDS.items() if ending in endings), "no code")


def _pattern(path: str) -> str:
    """What names a file of the archive in `fab-include`: itself, or all code of its package."""
    first, *below = path.split("/")
    return f"/{first}/**/*.py" if below and path.endswith(CODE) else f"/{path}"
