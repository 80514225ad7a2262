"""The whole deployment on one machine: every step's script, each party in a folder of its own.

::

    python deployment.py OUTPUT_FOLDER [KEY=VALUE …]

What `make deployment` runs. The server and three silos get free ports, and folders between which
only what the README names is exchanged. Whatever happens, nothing of it keeps running and no key
is left; the exit status is 0 only if the run completed and its adapter loads. Further arguments
are settings of the run, as submit.sh takes them.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import psutil

HERE = Path(__file__).parent
SILOS = ("numpy", "torch", "transformers")
"""Three organisations; each has the docstrings of the package of its name."""

START_SECONDS = 120.0
STOP_SECONDS = 40.0


class StepError(RuntimeError):
    """A step of the deployment failed."""


class Party:
    """One machine of the deployment: its folder, its settings, and what it runs."""

    def __init__(self, folder: Path, output: Path, superlink: int, trunk: int) -> None:
        self.folder = folder
        self.settings = folder / "settings.env"
        folder.mkdir()
        values = {
            "SERVER_HOST": "127.0.0.1",
            "SUPERLINK_PORT": superlink,
            "TRUNK_PORT": trunk,
            "FOLDER": folder,
            "BIN": Path(sys.executable).parent,
            "BIND_HOST": "127.0.0.1",
            "OUTPUT": output,
            "RUNTIME_PORT": free_port(),
        }
        # The scripts read them as shell.
        lines = [f"{key}={shlex.quote(str(value))}\n" for key, value in values.items()]
        self.settings.write_text("".join(lines))

    @property
    def environment(self) -> dict[str, str]:
        """Environment of this party's processes; its settings' path tells them from others."""
        return os.environ | {
            "DEPLOYMENT_SETTINGS": str(self.settings),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "TMPDIR": str(self.folder),
        }

    def do(self, script: str, *arguments: str | Path) -> None:
        """Run one step to its end."""
        say(f"{self.folder.name}: {shlex.join([script, *map(str, arguments)])}")
        if script == "flower-split":
            command = [sys.executable, "-m", "flower_split.apps.cli"]
        else:
            command = [*([sys.executable] if script.endswith(".py") else []), str(HERE / script)]
        done = subprocess.run(
            [*command, *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode != 0:
            raise StepError(f"{script} failed at {self.folder.name}")

    def start(self, script: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start a step that goes on, in a session of its own: Ctrl-C is for this process only."""
        say(f"{self.folder.name}: {shlex.join([script, *map(str, arguments)])} &")
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [str(HERE / script), *map(str, arguments)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> Path:
        """What the started step prints."""
        return self.folder / "log"


def deploy(folder: Path, output: Path, settings: Sequence[str]) -> None:
    """All steps, from keys to the check of the result, with every file below `folder`."""
    superlink, trunk = free_port(), free_port()
    server = Party(folder / "server", output, superlink, trunk)
    silos = {name: Party(folder / name, output, superlink, trunk) for name in SILOS}
    started: dict[str, tuple[Party, subprocess.Popen[bytes]]] = {}
    try:
        server.do("flower-split", "keys", "ca", server.folder / "keys")
        server.do("flower-split", "keys", "server", server.folder / "keys", "127.0.0.1")
        started["server"] = server, server.start("superlink.sh")
        wait_for_port(superlink, *started["server"])
        for name, silo in silos.items():
            silo.do("flower-split", "keys", "silo", silo.folder / "keys", name)
            silo.do("data.py", name, silo.folder / "data.jsonl")
            # All that the organisations exchange: the CA's certificate and the public key.
            exchange(server.folder / "keys/ca.crt", silo.folder / "keys")
            exchange(silo.folder / "keys" / f"{name}.pub", server.folder / "keys")
            server.do("register.sh", name, server.folder / "keys" / f"{name}.pub")
            started[name] = silo, silo.start("supernode.sh", name, silo.folder / "data.jsonl")
        server.do("submit.sh", *settings)
        server.do("show.py", output)
    except StepError:
        for name, (party, _) in started.items():
            tail = party.log.read_text(errors="replace").splitlines()[-15:]
            say("\n".join([f"--- the end of the log of {name}", *tail]))
        raise
    finally:
        for party, _ in reversed(started.values()):
            with contextlib.suppress(StepError):
                party.do("stop.sh")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for all parties, without which and whose processes the block is left."""
    folder = Path(tempfile.mkdtemp(prefix="flower-split-deployment-"))
    try:
        yield folder
    finally:
        # A second Ctrl-C shall not leave half of it.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        end = time.monotonic() + STOP_SECONDS
        while (left := processes_of(folder)) and time.monotonic() < end:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.terminate()
            psutil.wait_procs(left, timeout=5.0)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every living process that was started with settings below `folder`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            settings = process.environ().get("DEPLOYMENT_SETTINGS", "")
            if settings.startswith(f"{folder}/") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def exchange(file: Path, folder: Path) -> None:
    """Send one file from one party to another."""
    say(f"{file.parent.parent.name} -> {folder.parent.name}: {file.name}")
    shutil.copy(file, folder)


def wait_for_port(port: int, party: Party, process: subprocess.Popen[bytes]) -> None:
    """Return once something listens on `port`; `process` is what should."""
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.2)
    raise StepError(f"the SuperLink of {party.folder.name} does not listen on port {port}")


def free_port() -> int:
    """A TCP port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def say(text: str) -> None:
    """Print a line at once, before what a step prints."""
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for adapter, result.json and plot")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE of the run config")
    given = parser.parse_args(arguments)
    output = given.output.resolve()

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    # Not of an earlier run: what is shown at the end is what this one wrote.
    (output / "result.json").unlink(missing_ok=True)
    try:
        with scratch() as folder:
            deploy(folder, output, given.settings)
    except StepError as error:
        print(f"{error}; everything was stopped", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; everything was stopped", file=sys.stderr)
        return 130
    say("everything was stopped; no process and no key of it is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
