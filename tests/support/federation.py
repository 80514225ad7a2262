"""A real Flower federation: SuperLink, SuperNodes and `flwr`, each a process of its own.

Everything belongs to one folder, which is every process's `FLWR_HOME`, and whose `tmp` is every
process's temporary folder: so whatever is left of a federation can be found.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from flower_split.config.run_config import run_keys
from flower_split.tls.provisioning import make_ca, make_server, make_silo

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CONNECTION = "test"
COMPLETED = "finished:completed"
SECONDS = 300.0
"""For every single wait: some fifty times what it takes on a quiet machine."""
PAUSE = 2.0
"""Seconds between two `flwr` commands that ask for the same: each costs a processor's second."""

Found = TypeVar("Found")
Prefix = Sequence[str]
"""Words in front of a command, such as `ip netns exec NAME`."""


def wait_for(
    look: Callable[[], Found | None],
    what: str,
    seconds: float = SECONDS,
    logs: Callable[[], str] = str,
) -> Found:
    """The first true value of `look()`; fails with `logs()` when none came in time."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}\n{logs()}"
        time.sleep(0.2)
    return found


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def write_app(folder: Path, config: Mapping[str, Any]) -> Path:
    """A Flower app without code: the ready-made components, with `config` over the defaults.

    Every key is listed, so that `Federation.submit` can set any of them.
    """
    defaults = {
        key: ",".join(entry.default) if isinstance(entry.default, tuple) else entry.default
        for key, entry in run_keys().items()
        if isinstance(entry.default, (str, int, float, bool, tuple))
    }
    values = defaults | dict(config)
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "federation-test"\nversion = "0.0.1"\ndescription = "A test"\n'
        'license = "Apache-2.0"\ndependencies = []\n\n[tool.flwr.app]\npublisher = "tests"\n\n'
        '[tool.flwr.app.components]\nserverapp = "flower_split.apps.server_app:app"\n'
        'clientapp = "flower_split.apps.client_app:app"\n\n[tool.flwr.app.config]\n' + table + "\n"
    )
    return folder


@dataclass(frozen=True)
class Run:
    """How a run ended."""

    run_id: str
    status: str
    details: str


@dataclass(frozen=True, kw_only=True)
class Node:
    """One SuperNode to start."""

    config: Mapping[str, str | int] = field(default_factory=dict)
    """Its `--node-config`."""
    prefix: Prefix = ()
    """Words in front of its command."""


class Federation:
    """A SuperLink and SuperNodes for the time of a `with` block.

    Args:
        folder: Empty folder for everything that the federation writes.
        nodes: The SuperNodes, named `silo0`, `silo1`, …
        tls: Whether Flower's channel is TLS and SuperNodes authenticate themselves.
        host: Address that the SuperLink binds and all others connect to.
        prefix: Words in front of the SuperLink's and `flwr`'s commands.
    """

    def __init__(
        self,
        folder: Path,
        nodes: Sequence[Node] = (Node(), Node()),
        *,
        tls: bool = False,
        host: str = "127.0.0.1",
        prefix: Prefix = (),
    ) -> None:
        self.folder = folder
        self.nodes = list(nodes)
        self.tls = tls
        self.host = host
        self.prefix = list(prefix)
        self.port = free_port() if not prefix else 8000
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("tmp", "keys"):
            (folder / name).mkdir(parents=True)
        trust = f'root-certificates = "{self._key("ca.crt")}"' if tls else "insecure = true"
        (folder / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\n'
            f'address = "{host}:{self.port}"\n{trust}\n'
        )

    def __enter__(self) -> "Federation":
        try:
            if self.tls:
                self._make_keys()
            self.start_superlink()
            if self.tls:
                for name in self._names():
                    self.flwr("supernode", "register", self._key(f"{name}.pub"), CONNECTION)
            for number in range(len(self.nodes)):
                self.start_node(number)
            self.wait_for_nodes()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """Environment of every process of the federation."""
        return {
            **os.environ,
            "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)]),
            "PYTHONUNBUFFERED": "1",
            "CUDA_VISIBLE_DEVICES": "",  # as in the tests of one process
            "NO_PROXY": "*",
            "TMPDIR": str(self.folder / "tmp"),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "FLWR_HOME": str(self.folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
        }

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers."""
        trust = ["--insecure"]
        if self.tls:
            trust = ["--ssl-ca-certfile", self._key("ca.crt"), "--enable-supernode-auth"]
            trust += ["--ssl-certfile", self._key("server.crt")]
            trust += ["--ssl-keyfile", self._key("server.key")]
        address = ["--host", self.host, "--port", str(self.port)]
        self._start("superlink", self.prefix, "flower-superlink", *trust, *address)
        wait_for(self._superlink_answers, "the SuperLink is up", logs=self.logs)

    def start_node(self, number: int) -> None:
        """Start the SuperNode of that number."""
        node, name = self.nodes[number], self._names()[number]
        trust = ["--insecure"]
        if self.tls:
            trust = ["--root-certificates", self._key("ca.crt")]
            trust += ["--auth-supernode-private-key", self._key(f"{name}.key")]
        arguments = ["--superlink", f"{self.host}:{self.port}", "--max-wait-time", "60"]
        arguments += ["--host", "127.0.0.1", "--port", str(free_port())]
        if node.config:
            pairs = (f"{key}={json.dumps(value)}" for key, value in node.config.items())
            arguments += ["--node-config", " ".join(pairs)]
        self._start(name, node.prefix, "flower-supernode", *trust, *arguments)

    def wait_for_nodes(self) -> None:
        """Wait until every SuperNode has the id that the SuperLink gives to those it lets in."""

        def online() -> bool:
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended:\n{self.log(name)}"
            return all("SuperNode ID: " in self.log(name) for name in self._names())

        wait_for(online, "all SuperNodes are online", logs=self.logs)

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """What a `flwr` command prints as JSON."""
        done = subprocess.run(
            [*self.prefix, str(BIN / "flwr"), *arguments, "--format", "json"],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        said = done.stdout + done.stderr
        start = done.stdout.find("{")
        assert done.returncode == 0 and start >= 0, f"flwr {' '.join(arguments)}:\n{said}"
        answer: dict[str, Any] = json.JSONDecoder().raw_decode(done.stdout[start:])[0]
        return answer

    def submit(self, app: Path, **run_config: str | int | float | bool) -> str:
        """Start a run of `app` and return its id. In names, `__` is a dot and `_` a hyphen."""
        settings = {
            name.replace("__", ".").replace("_", "-"): json.dumps(value)
            for name, value in run_config.items()
        }
        # In one argument, because of two that name the same section Flower takes the last only.
        given = " ".join(f"{key}={value}" for key, value in settings.items())
        return str(self.flwr("run", str(app), CONNECTION, "-c", given)["run-id"])

    def state(self, run_id: str) -> Run:
        """What `flwr list` says of a run."""
        listed = self.flwr("list", CONNECTION, "--run-id", run_id)["runs"][0]
        return Run(run_id, str(listed["status"]), str(listed.get("status-details") or ""))

    def wait(self, run_id: str, seconds: float = SECONDS) -> Run:
        """Wait for the end of a run, and of the ServerApps that are running."""
        asked = time.monotonic()

        def ended() -> Run | None:
            nonlocal asked
            if self.members("flwr-serverapp") or time.monotonic() < asked + PAUSE:
                return None
            found = self.state(run_id)
            asked = time.monotonic()
            return found if found.status.startswith("finished") else None

        return wait_for(ended, f"run {run_id} ends", seconds, self.logs)

    def run(self, app: Path, **run_config: str | int | float | bool) -> Run:
        """Start a run and wait for its end."""
        return self.wait(self.submit(app, **run_config))

    def log(self, name: str) -> str:
        """What a process and its children have printed."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def run_log(self, run_id: str) -> str:
        """What the ServerApp of a run has logged: Flower keeps that out of the SuperLink's log."""
        return subprocess.run(
            [*self.prefix, str(BIN / "flwr"), "log", run_id, CONNECTION, "--show"],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=SECONDS,
        ).stdout

    def logs(self) -> str:
        """The end of every process's log, for a failure's message."""
        return "\n".join(f"--- {name}\n{self.log(name)[-3000:]}" for name in self.processes)

    def members(self, part: str = "") -> list[psutil.Process]:
        """Every living process of the federation whose command line contains `part`."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                mine = process.environ().get("FLWR_HOME") == str(self.folder)
                alive = process.status() != psutil.STATUS_ZOMBIE
                if mine and alive and part in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def app_processes(self) -> list[psutil.Process]:
        """The living processes of ServerApps and ClientApps."""
        return [*self.members("flwr-serverapp"), *self.members("flwr-clientapp")]

    def listening(self) -> dict[int, str]:
        """Port and process of everything that the federation's processes listen on."""
        found = {}
        for process in self.members():
            with suppress(psutil.Error):
                for connection in process.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        found[connection.laddr.port] = " ".join(process.cmdline())
        return found

    def silos_at_trunk(self, own: set[int]) -> list[psutil.Process]:
        """ClientApps that are connected to a port that is none of `own`: to a run's trunk."""
        trunks = self.listening().keys() - own
        found = []
        for process in self.members("flwr-clientapp"):
            with suppress(psutil.Error):
                if any(c.raddr and c.raddr.port in trunks for c in process.net_connections("inet")):
                    found.append(process)
        return found

    def temporary(self) -> list[str]:
        """Files and folders that the federation's processes left in their temporary folder."""
        tmp = self.folder / "tmp"
        return sorted(str(path.relative_to(tmp)) for path in tmp.rglob("*"))

    def assert_idle(self, ports: set[int], seconds: float = SECONDS) -> None:
        """Fail unless no app runs any more and only `ports` are listened on.

        Args:
            ports: The keys of `listening()` before the run.
            seconds: Within which that must come true.
        """

        def left() -> str:
            apps = [" ".join(process.cmdline()) for process in self.app_processes()]
            extra = {port: who for port, who in self.listening().items() if port not in ports}
            return "" if not apps and not extra else f"processes {apps}, listening {extra}"

        def gone() -> bool:
            with suppress(psutil.Error):
                return not left()
            return False

        end = time.monotonic() + seconds
        while not gone():
            assert time.monotonic() < end, f"left after {seconds:g} s: {left()}\n{self.logs()}"
            time.sleep(0.1)
        assert self.temporary() == []

    def signal(self, name: str, number: int = signal.SIGTERM) -> None:
        """Send a signal to one process, not to its children."""
        self.processes[name].send_signal(number)

    def close(self) -> None:
        """Stop everything, as an operator does; kill and fail if something stays. Idempotent."""
        for name in [name for name in self.processes if name != "superlink"] + ["superlink"]:
            if name in self.processes and self.processes[name].poll() is None:
                self.processes[name].send_signal(signal.SIGTERM)
        end = time.monotonic() + 30.0
        while (left := self.members()) and time.monotonic() < end:
            for process in self.processes.values():
                process.poll()
            time.sleep(0.1)
        told = []
        for process in left:
            with suppress(psutil.Error):
                told.append(" ".join(process.cmdline()))
                process.kill()
        for process in self.processes.values():
            process.wait(30.0)
        self.processes.clear()
        assert not told, f"still running after SIGTERM: {told}"
        assert self.temporary() == []

    def _names(self) -> list[str]:
        return [f"silo{number}" for number in range(len(self.nodes))]

    def _key(self, name: str) -> str:
        return str(self.folder / "keys" / name)

    def _make_keys(self) -> None:
        folder = self.folder / "keys"
        make_ca(folder)
        make_server(folder, [self.host])
        for name in self._names():
            make_silo(folder, name)

    def _superlink_answers(self) -> bool:
        assert self.processes["superlink"].poll() is None, self.log("superlink")
        if self.prefix:  # its network is not this process's
            probe = f"import socket; socket.create_connection(({self.host!r}, {self.port}), 2)"
            command = [*self.prefix, sys.executable, "-c", probe]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        with suppress(OSError), socket.create_connection((self.host, self.port), timeout=2.0):
            return True
        return False

    def _start(self, name: str, prefix: Prefix, program: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*prefix, str(BIN / program), *arguments],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
