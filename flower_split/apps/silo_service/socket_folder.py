"""The service's folder and the socket in it, which are this user's alone, and who is at its ends.

The folder has mode 0700 and the socket 0600, and both ends ask the kernel whose process the other
one is. The service holds a lock on the folder itself, which the kernel frees with the process: a
socket that a killed service has left is told from one that is served.
"""

import errno
import fcntl
import os
import shlex
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from flower_split.errors import ServiceError, UnsafeFolderError
from flower_split.private_files import check_private, make_folder, resolved

SOCKET = "silo.sock"
LONGEST_PATH = 107
"""Bytes of a socket's path, by unix(7)."""
WAITING = 8
_PAUSE = 0.02
"""Connections that may wait to be accepted."""
REMEDY = "name another folder in the node config's service-dir and to flower-split silo serve"


class Peer(NamedTuple):
    """The process at the other end, as the kernel knows it."""

    pid: int
    uid: int


def socket_path(folder: Path) -> Path:
    """The socket in `folder`.

    Raises:
        ServiceError: the path is longer than a socket's may be, or this system cannot say who is
            at the other end.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        raise ServiceError("the silo service needs Linux: leave service-dir out of the node config")
    path = resolved(folder) / SOCKET
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ServiceError(
            f"{path} is longer than the {LONGEST_PATH} bytes that a socket's path may have: "
            f"{REMEDY}"
        )
    return path


def check_folder(folder: Path) -> None:
    """Raise unless `folder` is this user's and nobody else may look into it.

    Raises:
        UnsafeFolderError: it is not.
        OSError: it is not there, no folder, or a link.
    """
    check_private(folder, remedy=REMEDY)
    found = folder.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise UnsafeFolderError(
            f"{folder} belongs to user id {found.st_uid} and has mode "
            f"{found.st_mode & 0o7777:04o}: the silo service's folder must be of user id "
            f"{os.geteuid()}, who runs this process, with mode 0700. Run `chmod 700 "
            f"{shlex.quote(str(folder))}` as its owner, or {REMEDY}"
        )


@contextmanager
def listening(folder: Path) -> Iterator[socket.socket]:
    """The service's socket in `folder`, which is made if missing; gone again at the end.

    Raises:
        ServiceError: another service has the folder, or it cannot be used.
        UnsafeFolderError: it is not this user's alone.
    """
    path = socket_path(folder)
    try:
        made = make_folder(folder)
        check_folder(made)
        handle = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        _lock(handle, made)
        served = _bound(path)
        try:
            yield served
        finally:
            served.close()
            with suppress(FileNotFoundError):
                path.unlink()
    finally:
        os.close(handle)


def _connect(made: socket.socket, path: Path, seconds: float) -> None:
    """Connect, and wait for a place among those that wait to be accepted.

    With a timeout, the system does not wait for one itself.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return made.connect(str(path))
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise TimeoutError from error
            time.sleep(_PAUSE)


def connected(folder: Path, seconds: float) -> socket.socket:
    """A connection to the service in `folder`, which is this user's.

    Args:
        folder: The service's.
        seconds: In which it must be there, and a bound for every wait that follows.

    Raises:
        ServiceError: no service is running there, it is another user's, or does not answer.
        UnsafeFolderError: the folder is not this user's alone.
    """
    path = socket_path(folder)
    try:
        check_folder(path.parent)
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ServiceError(f"{path} is no socket: remove it, and start flower-split silo serve")
    except FileNotFoundError as error:
        raise _not_served(path) from error
    except OSError as error:
        raise _unusable(folder, error) from error
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(seconds)
        _connect(made, path, seconds)
        check_peer(made)
    except (ConnectionRefusedError, FileNotFoundError) as error:
        made.close()
        raise _not_served(path) from error
    except TimeoutError as error:
        made.close()
        raise ServiceError(
            f"the silo service at {path} took no connection in {seconds:g} s"
        ) from error
    except OSError as error:
        made.close()
        raise _unusable(folder, error) from error
    except BaseException:
        made.close()
        raise
    return made


def check_peer(connection: socket.socket) -> Peer:
    """The process at the other end of `connection`, which is this user's.

    Raises:
        ServiceError: it is another user's.
    """
    size = struct.calcsize("3i")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _ = struct.unpack("3i", found)
    if uid != os.geteuid():
        raise ServiceError(
            f"process {pid} at the other end of the silo service's socket is of user id {uid}, and "
            f"this one of {os.geteuid()}: run the service and its SuperNode as the same user"
        )
    return Peer(pid, uid)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ServiceError(
            f"another silo service has {folder}: stop it, or give every SuperNode a folder and a "
            "service of its own"
        ) from None
    except OSError as error:
        raise _unusable(folder, error) from error


def _bound(path: Path) -> socket.socket:
    """A socket at `path` that listens; one that is there is a killed service's, by the lock."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ServiceError(f"{path} is no socket, and is not replaced: remove it, or {REMEDY}")
        path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unusable(path.parent, error) from error
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    former = os.umask(0o177)
    try:
        made.bind(str(path))
    except OSError as error:
        made.close()
        raise _unusable(path.parent, error) from error
    finally:
        os.umask(former)
    made.listen(WAITING)
    return made


def _not_served(path: Path) -> ServiceError:
    return ServiceError(
        f"no silo service is running at {path}: start flower-split silo serve "
        f"{shlex.quote(str(path.parent))} as this user"
    )


def _unusable(folder: Path, error: OSError) -> ServiceError:
    said = error.strerror or str(error)
    todo = "free space on its disk" if error.errno == errno.ENOSPC else "let this user write there"
    return ServiceError(f"the silo service cannot use {folder}: {said}; {todo}, or {REMEDY}")
