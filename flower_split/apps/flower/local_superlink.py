"""A private Flower SuperLink in simulation mode: started, used and ended by one process.

It listens on a free port of this machine only, keeps its state in memory and in a temporary
folder, and asks nothing of the internet. `flwr run`'s own managed SuperLink, in contrast, is
shared by every run of a user and outlives them.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flower_split.apps.flower.flwr_command import FlwrError, binary, flwr_json, flwr_lines
from flower_split.apps.flower.private_home import (
    free_port,
    private_environment,
    short_folder,
    stop_processes,
)

CONNECTION = "private"
START_SECONDS = 90.0
# Of Ray about a default of its own, and of transformers about what PEFT calls.
QUIET = (
    "ignore::FutureWarning:ray._private.worker,ignore::FutureWarning:transformers.modeling_utils"
)


class LocalSuperLinkError(FlwrError):
    """The SuperLink, or a run that was given to it, failed."""


RAY_ADDRESS = "RAY_ADDRESS"
"""Environment variable that names a Ray cluster."""


class LocalSuperLink:
    """A SuperLink for the time of a `with` block.

    At the end every process that it started is stopped, Ray's included.

    Raises:
        LocalSuperLinkError: on entering, when Flower is not installed beside this interpreter or
            the SuperLink does not start.
    """

    def __init__(self) -> None:
        try:
            self.home = Path(tempfile.mkdtemp(prefix="flower-split-", dir=short_folder()))
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
        """Environment of every process that belongs to this SuperLink.

        Silos are simulated on a Ray cluster of their own, whichever other one there is.
        """
        inherited = private_environment(self.home)
        inherited.pop(RAY_ADDRESS, None)
        return {
            **inherited,
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
        stop_processes(self.home)
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
        port = free_port()
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
            status = self._process.poll()
            if status is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip()
                how = (
                    f"it did not answer within {START_SECONDS:g} s, as on a machine that is busy: "
                    "try again"
                    if status is None
                    else f"it ended with status {status}"
                )
                raise LocalSuperLinkError(
                    f"the local SuperLink did not start: {how}. It printed:\n{said or 'nothing'}"
                )
            time.sleep(0.1)


def _answers(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=1.0) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
