"""A private home of Flower's programs: their environment, and the processes that belong to it.

Every process that is started with the environment of a home, and all that such a process starts,
is found again by it and stopped with it.
"""

import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

STOP_SECONDS = 6.0
# Bytes. Ray's sockets lie some ninety below it, and a socket's path has at most 107.
LONGEST_TEMPORARY = 17


def private_environment(home: Path) -> dict[str, str]:
    """Environment of every process that belongs to the private home `home`."""
    binaries = str(Path(sys.executable).parent)
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    local = [host for host in (named, "127.0.0.1", "localhost") if host]
    return {
        **os.environ,
        "PATH": os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)]),
        "NO_PROXY": ",".join(local),
        "no_proxy": ",".join(local),
        "PYTHONUNBUFFERED": "1",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    }


def processes_of(home: Path, known: Sequence[psutil.Process] = ()) -> list[psutil.Process]:
    """The running processes among `known`, and those that belong to the private home `home`.

    A process belongs to it as a descendant, or by the folder in its environment: a process
    whose parent died has no ancestor here, and one that set its own title no environment.
    """
    found = {process for process in known if process.is_running()}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FLWR_HOME") == str(home):
                found.add(process)
    for process in tuple(found):
        with contextlib.suppress(psutil.Error):
            found.update(process.children(recursive=True))
    return [process for process in found if process.pid != os.getpid()]


def stop_processes(home: Path) -> None:
    """End every process that belongs to the private home `home`, gently first."""
    left = processes_of(home)
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                stop(process)
        psutil.wait_procs(left, timeout=STOP_SECONDS)
        left = processes_of(home, left)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A block that Ctrl-C and SIGTERM do not end: a second Ctrl-C shall not leave half of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)


def short_folder() -> str:
    """The folder for temporary files, or `/tmp` where its path is too long."""
    usual = tempfile.gettempdir()
    fits = len(os.fsencode(usual)) <= LONGEST_TEMPORARY
    return "/tmp" if not fits and os.path.isdir("/tmp") else usual


def free_port() -> int:
    """A TCP port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
