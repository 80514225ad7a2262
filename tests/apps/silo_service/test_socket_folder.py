import os
import socket
import stat
import threading
from contextlib import ExitStack

import pytest
from other_user import as_other_user, needs_root

from flower_split.apps.silo_service import socket_folder
from flower_split.apps.silo_service.socket_folder import (
    SOCKET,
    WAITING,
    check_peer,
    connected,
    listening,
)
from flower_split.errors import ServiceError, UnsafeFolderError


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def test_folder_and_socket_are_this_users_alone_and_the_socket_goes(folder):
    own = folder / "service"
    former = os.umask(0)
    try:
        with listening(own):
            assert mode(own) == 0o700 and mode(own / SOCKET) == 0o600
    finally:
        os.umask(former)
    assert list(own.iterdir()) == []


def test_both_ends_see_each_other(folder):
    with listening(folder) as listener, connected(folder, 30.0) as caller:
        taken, _ = listener.accept()
        with taken:
            assert check_peer(taken) == check_peer(caller) == (os.getpid(), os.geteuid())


def test_more_than_can_wait_are_waited_with(folder):
    """A service that is not there for a moment refuses nobody, and one that hangs is named."""
    with listening(folder) as listener, ExitStack() as held:
        for _ in range(WAITING + 1):
            held.callback(connected(folder, 5.0).close)
        with pytest.raises(ServiceError, match=r"took no connection in 0\.1 s"):
            connected(folder, 0.1)
        accepting = threading.Timer(0.1, lambda: listener.accept()[0].close())
        accepting.start()
        connected(folder, 5.0).close()
        accepting.join()


def test_two_services_cannot_have_one_folder(folder):
    with (
        listening(folder),
        pytest.raises(ServiceError, match="another silo service has"),
        listening(folder),
    ):
        pass
    with listening(folder):
        pass


def test_a_refused_service_leaves_the_other_ones_socket(folder):
    with listening(folder) as listener:
        with pytest.raises(ServiceError), listening(folder):
            pass
        with connected(folder, 30.0):
            listener.accept()[0].close()


def test_the_socket_of_a_killed_service_is_replaced(folder):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(folder / SOCKET))
    left.close()
    with listening(folder), connected(folder, 30.0):
        pass


def test_what_is_no_socket_is_not_replaced(folder):
    (folder / SOCKET).write_text("kept")
    with pytest.raises(ServiceError, match="is no socket"), listening(folder):
        pass
    assert (folder / SOCKET).read_text() == "kept"


@pytest.mark.parametrize("shared", [0o750, 0o705, 0o777])
def test_a_folder_that_others_may_look_into_is_refused(folder, shared):
    folder.chmod(shared)
    with pytest.raises(UnsafeFolderError, match="chmod"), listening(folder):
        pass
    with pytest.raises(UnsafeFolderError, match="chmod"):
        connected(folder, 30.0)
    assert list(folder.iterdir()) == []


def test_a_file_in_the_folders_place_is_refused(folder):
    (folder / "file").write_text("")
    with pytest.raises(ServiceError, match="cannot use"), listening(folder / "file"):
        pass


def test_a_peer_of_another_user_is_refused(folder, monkeypatch):
    with listening(folder) as listener, connected(folder, 30.0):
        taken, _ = listener.accept()
        with taken:
            monkeypatch.setattr(socket_folder.os, "geteuid", lambda: 4242)
            with pytest.raises(ServiceError, match="as the same user"):
                check_peer(taken)


@needs_root
@pytest.mark.medium
def test_another_user_reaches_no_service_of_this_one(folder):
    with listening(folder):
        said = as_other_user(f"""
            from pathlib import Path
            from flower_split.apps.silo_service.socket_folder import connected
            from flower_split.errors import FlowerSplitError
            try:
                connected(Path({str(folder)!r}), 5.0)
            except FlowerSplitError as error:
                print(type(error).__name__, error)
        """)
    assert said.startswith(("ServiceError", "UnsafeFolderError")), said


def test_without_peer_credentials_there_is_no_service(folder, monkeypatch):
    monkeypatch.delattr(socket_folder.socket, "SO_PEERCRED")
    with pytest.raises(ServiceError, match="needs Linux"):
        connected(folder, 1.0)
