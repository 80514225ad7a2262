"""A private Flower SuperLink in simulation mode: started, used and ended by one process.

It listens on a free port of this machine only, keeps its state in memory and in a temporary
folder, and asks nothing of the internet. `flwr run`'s own managed SuperLink, in contrast, is
shared by every run of a user and outlives them.
"""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from flower_split.apps.flower.flwr_command import FlwrError, binary, flwr_json, flwr_lines

CONNECTION = "private"
START_SECONDS = 90.0
STOP_SECONDS = 6.0
# Bytes. Ray's sockets lie some ninety below it, and a socket's path has at most 107.
LONGEST_TEMPORARY = 17
# Of Ray about a default of its own, and of transformers about what PEFT calls.
QUIET = (
    "ignore::FutureWarning:ray._private.worker,ignore::FutureWarning:transformers.modeling_utils"
)


class LocalSuperLinkError(FlwrError):
    """The SuperLink, or a run that was given to it, failed."""


class LocalSuperLink:
    """A SuperLink for the time of a `with` block.

    At the end every process that it started is stopped, Ray's included.

    Raises:
        LocalSuperLinkError: on entering, when Flower is not installed beside this interpreter or
            the SuperLink does not start.
    """

    def __init__(self) -> None:
        try:
            self.home = Path(tempfile.mkdtemp(prefix="flower-split-", dir=_short_folder()))
        except OSError as error:
            raise LocalSuperLinkError(
                f"no temporary folder can be made: {error.strerror}. Name one by TMPDIR"
            ) from error
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """Environment of every process that belongs to this SuperLink."""
        binaries = str(Path(sys.executable).parent)
        named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        local = [host for host in (named, "127.0.0.1", "localhost") if host]
        return {
            **os.environ,
            "PATH": os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)]),
            "NO_PROXY": ",".join(local),
            "no_proxy": ",".join(local),
            "PYTHONUNBUFFERED": "1",
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "RAY_TMPDIR": str(self.home),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", QUIET),
        }

    def flwr(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a `flwr` command, whose lines are read from its standard output."""
        return flwr_lines(self.environment, *arguments)

    def flwr_json(self, *arguments: str) -> dict[str, Any]:
        """Run a `flwr` command and return what it prints as JSON.

        Raises:
            FlwrError: with what the command said, when it failed.
        """
        return flwr_json(self.environment, *arguments)

    def close(self) -> None:
        """Stop every process of this SuperLink and remove its folder. Can be called twice."""
        left = self._processes()
        for stop in (psutil.Process.terminate, psutil.Process.kill):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    stop(process)
            psutil.wait_procs(left, timeout=STOP_SECONDS)
            left = self._processes(left)
        if self._process is not None:
            self._process.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    def _start(self) -> None:
        if shlex.quote(sys.executable) != sys.executable:
            raise LocalSuperLinkError(
                f"Ray, which runs simulated silos, gives {sys.executable!r} to a shell, to which "
                "that is more than a name: make the virtual environment at a path without spaces "
                "and quotes"
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n'
            f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        log = self.home / "superlink.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    binary("flower-superlink"),
                    "--insecure",
                    "--simulation",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(port),
                ],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches this process only, which then stops the others in order.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not _answers(port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip()
                raise LocalSuperLinkError(f"the local SuperLink did not start:\n{said}")
            time.sleep(0.1)

    def _processes(self, known: Sequence[psutil.Process] = ()) -> list[psutil.Process]:
        """The running processes among `known`, and those that belong to this SuperLink.

        A process belongs to it as a descendant, or by the folder in its environment: a process
        whose parent died has no ancestor here, and one that set its own title no environment.
        """
        found = {process for process in known if process.is_running()}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("FLWR_HOME") == str(self.home):
                    found.add(process)
        for process in tuple(found):
            with contextlib.suppress(psutil.Error):
                found.update(process.children(recursive=True))
        return [process for process in found if process.pid != os.getpid()]


def _short_folder() -> str:
    """The folder for temporary files, or `/tmp` where its path is too long."""
    usual = tempfile.gettempdir()
    fits = len(os.fsencode(usual)) <= LONGEST_TEMPORARY
    return "/tmp" if not fits and os.path.isdir("/tmp") else usual


def _answers(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=1.0) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
