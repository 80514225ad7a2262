"""Private files: what flower_split writes is this user's alone, and is reached through no link.

Folders are made with mode 0700 and files with 0600, whatever the umask; a folder that was there
keeps its mode. A folder whose content is believed later (states, checkpoints, snapshots, the cache
of a delivered model, verdicts) is checked before it is used, on the descriptor that was opened: it
must be this user's or root's, and writable by nobody else. Then nobody else can exchange what lies
in it, and names in it may be opened again, as other libraries do.

A user may link to his folder, so the folder that he names is resolved first. Below it no link is
followed.
"""

import errno
import os
import pwd
import secrets
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from flower_split.durable import sync_folder
from flower_split.errors import UnsafeFolderError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# A pipe in the place of a file would be waited for.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def make_folder(folder: Path) -> Path:
    """Make `folder` and its missing parents for this user alone; one that is there stays as it is.

    Returns:
        The folder, with links on the way to it resolved.

    Raises:
        OSError: it cannot be made, is no folder, or leads by a link to what is not there.
    """
    made = Path(os.path.realpath(folder))
    if not os.path.lexists(made) and _through_a_link(folder):
        raise OSError(errno.ENOENT, f"it leads to {made}, which is not there", str(folder))
    missing = [path for path in (made, *made.parents) if not os.path.lexists(path)]
    for path in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
    os.close(_opened(made, made))
    return made


def resolved(folder: Path) -> Path:
    """What `folder`, which a user named, leads to by links; itself where nothing is there."""
    return Path(os.path.realpath(folder)) if os.path.exists(folder) else folder


def make_private(folder: Path, *, below: Path | None = None, remedy: str) -> None:
    """Make `folder` for this user alone, for what is believed later; every one is checked.

    Args:
        folder: The folder.
        below: The first folder of those on the way to it that are made and checked, and may be no
            link; None for `folder` itself. What the user named is resolved by `make_folder` before.
        remedy: What the user can do besides, such as the setting that names another folder.

    Raises:
        UnsafeFolderError: one is another user's, or others may write into it.
        OSError: one cannot be made, or is a link.
    """
    _walk(folder, below, remedy, make=True)


def check_private(folder: Path, *, below: Path | None = None, remedy: str) -> None:
    """As `make_private`, of folders that are there.

    Raises:
        UnsafeFolderError: one is another user's, or others may write into it.
        OSError: one is not there, no folder, or a link.
    """
    _walk(folder, below, remedy, make=False)


def write_new(path: Path, data: bytes) -> None:
    """Write a new file and force it to the disk; its name is durable after `sync_folder`.

    Raises:
        OSError: the disk is full, there is something at `path`, …; nothing new is there.
    """
    handle = os.open(path, _NEW, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes, *, temporary: str = "") -> None:
    """Write a file beside `path` and put it in the place of what is there: whole or not at all.

    A link at `path` is replaced itself, and not what it leads to.

    Args:
        path: The file.
        data: Its content.
        temporary: Name of the file beside it, of which an older one is removed; by default a new
            name.

    Raises:
        OSError: the disk is full, the folder is read-only, …; what was there is still there.
    """
    made = path.with_name(temporary or f".writing-{secrets.token_hex(8)}")
    if temporary:
        made.unlink(missing_ok=True)
    write_new(made, data)
    try:
        os.replace(made, path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A file of ours, open for reading.

    Raises:
        OSError: it is a link, no regular file, missing, or cannot be read.
    """
    try:
        handle = os.open(path, _READ)
    except OSError as error:
        raise _explained(error, path) from error
    _check_regular(handle, path)
    with os.fdopen(handle, "rb") as file:
        yield file


def read_whole(path: Path) -> bytes:
    """The bytes of a file of ours.

    Raises:
        OSError: as `opened`.
    """
    with opened(path) as file:
        return file.read()


def open_lasting(path: Path) -> int:
    """Descriptor of a file of ours that is made if missing, to be locked, read and written.

    Raises:
        OSError: it is a link, no regular file, or cannot be made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o600)
    except OSError as error:
        raise _explained(error, path) from error
    _check_regular(handle, path)
    return handle


def keep_private(folder: Path) -> None:
    """Take `folder` and all in it from everyone else, after another library has written it.

    On a file system without modes, everyone keeps what that file system gives.
    """
    for parent, _, files in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in files)):
            if not os.path.islink(path):
                with suppress(PermissionError):
                    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) & 0o700)


def _walk(folder: Path, below: Path | None, remedy: str, *, make: bool) -> None:
    """Check the folders from `below` to `folder`, each looked up in the one that was checked."""
    root = folder if below is None else below
    handle = _entered(root, root, None, make)
    try:
        _check(handle, root, remedy)
        for name in folder.relative_to(root).parts:
            root /= name
            inner = _entered(name, root, handle, make)
            os.close(handle)
            handle = inner
            _check(handle, root, remedy)
    finally:
        os.close(handle)


def _entered(name: Path | str, path: Path, within: int | None, make: bool) -> int:
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=within)
    return _opened(name, path, within)


def _check(handle: int, folder: Path, remedy: str) -> None:
    found, me = os.fstat(handle), os.geteuid()
    if found.st_uid not in (me, 0):
        why = f"it must belong to {_user(me)}, who runs this process"
        todo = f"chown {me} {shlex.quote(str(folder))}"
    elif found.st_mode & 0o022:
        why = "nobody else may write into it"
        todo = f"chmod go-w {shlex.quote(str(folder))}"
    else:
        return
    raise UnsafeFolderError(
        f"{folder} belongs to {_user(found.st_uid)} and has mode {found.st_mode & 0o7777:04o}: "
        f"{why}, because what is kept there is believed later. Run `{todo}`, or {remedy}; a folder "
        "that does not exist yet is made for this user alone"
    )


def _check_regular(handle: int, path: Path) -> None:
    """Close `handle` and raise where it is no file's."""
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def _through_a_link(folder: Path) -> bool:
    """Whether the first of `folder` and its parents that is there leads to nothing."""
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            return not os.path.exists(path)
    return False


def _opened(name: Path | str, path: Path, within: int | None = None) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=within)
    except OSError as error:
        raise _explained(error, path) from error


def _explained(error: OSError, path: Path) -> OSError:
    """`error`, in words that say so where a link was met."""
    # A link where a folder is wanted is "not a directory" to Linux.
    if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENOTDIR) and os.path.islink(path):
        return OSError(
            errno.ELOOP, "it is a symbolic link, and none is followed here: remove it", str(path)
        )
    return OSError(error.errno, error.strerror, str(path))


def _user(number: int) -> str:
    try:
        return f"{pwd.getpwuid(number).pw_name} (user id {number})"
    except KeyError:
        return f"user id {number}"
