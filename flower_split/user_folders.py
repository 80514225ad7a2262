"""The user's own folders: his home, and where things go for a user who has none.

In a container a process may run as a user id that is in no list of users, without HOME, or with a
home that cannot be written to. Nothing fails for that.
"""

import errno
import logging
import os
import stat
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

logger = logging.getLogger(__name__)

_OURS = "flower-split"


def expanded(text: str | Path) -> Path:
    """The path `text`, with a leading `~` as the home of the user.

    Raises:
        OSError: that home is not known, or `text` can be no path.
    """
    if "\0" in str(text):
        raise OSError(errno.EINVAL, "a path has no null character")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise OSError(errno.ENOENT, "the home folder of that user is not known") from error


def user_folder(variable: str, otherwise: str, *, key: str) -> Path:
    """Our folder in the one that an environment variable names, which need not exist.

    Where neither that nor the user's home can be written to, it is a folder by the user's id among
    the temporary ones, which later processes find again, and a warning says so once.

    Args:
        variable: Such as `XDG_CACHE_HOME`.
        otherwise: Folder in the user's home, where the variable names none.
        key: The setting that names another folder, for the warning.
    """
    named = os.environ.get(variable, "")
    # The specification has relative paths ignored.
    if os.path.isabs(named):
        return Path(named) / _OURS
    try:
        folder = Path.home() / otherwise / _OURS
    except RuntimeError:
        return _temporary("this user has no home folder", key)
    return folder if _can_be_made(folder) else _temporary(f"{folder} cannot be written to", key)


def give_flower_a_home() -> None:
    """Name Flower a folder of its own where this user has no home, without which it cannot begin.

    For this process and those that it starts, by `FLWR_HOME`, which counts where it is set.
    """
    if os.environ.get("FLWR_HOME"):
        return
    try:
        Path.home()
    except RuntimeError:
        folder = _temporary("this user has no home folder", "FLWR_HOME or HOME")
        os.environ["FLWR_HOME"] = str(folder / "flwr")


def _can_be_made(folder: Path) -> bool:
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            return path.is_dir() and os.access(path, os.W_OK | os.X_OK)
    return False


@lru_cache
def _temporary(why: str, key: str) -> Path:
    try:
        root = Path(tempfile.gettempdir())
    except OSError:  # none can be written to, which whoever writes there is told
        root = Path("/tmp")
    folder = root / f"{_OURS}-{os.geteuid()}"
    # Made now, so that nobody else can put something in its place, such as a link.
    with suppress(OSError):
        folder.mkdir(mode=0o700)
    if not _is_own(folder):
        with suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix=f"{_OURS}-", dir=root))
    logger.warning(
        "%s: what would be kept there is kept in %s, as long as that lasts. Name a folder by %s",
        why,
        folder,
        key,
    )
    return folder


def _is_own(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
