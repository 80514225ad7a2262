"""A local federation: a SuperLink and one SuperNode a silo, secured as between organisations.

Flower's channel is TLS and takes registered SuperNodes only; the trunk's has a certificate of the
same CA, and demands of every silo one of its own, to which the silo's tokens are bound. Each
party's keys are in a folder of its own, of this user alone.
"""

import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from flower_split.apps.flower.flwr_command import FlwrError, binary, flwr_json
from flower_split.apps.flower.private_home import (
    free_port,
    private_environment,
    stop_processes,
    undisturbed,
)
from flower_split.apps.folder.overrides import Settings, Value, rendered
from flower_split.private_files import make_folder
from flower_split.tls.provisioning import make_ca, make_server, make_silo, make_silo_certificate

CONNECTION = "local"
HOST = "127.0.0.1"
START_SECONDS = 300.0
"""Within which all silos are connected: many times what it takes on a quiet machine."""
PAUSE = 1.0
"""Seconds between two looks at who is connected."""
TAIL = 15
"""Lines of a program's log that an error shows."""


@dataclass(frozen=True, kw_only=True)
class LocalSilo:
    """One silo of a local federation."""

    name: str
    data: str = ""
    """Absolute path of its own data; empty for its part of what the app names."""


class LocalFederation:
    """A SuperLink and SuperNodes for the time of a `with` block, at whose end all are stopped.

    Args:
        folder: Of this user alone. Keys that an earlier federation has left there are used again.
        silos: At least one, each with a name of its own that can be a file's.
        tell: Takes a line on what is going on.
        hosts_trunk: Whether runs have their trunk here, with certificates of the federation's own.
            A trunk service has others, which its invitations name.

    Raises:
        FlwrError: on entering, when a program does not start or a silo is not let in.
        OSError: on entering, when the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        silos: Sequence[LocalSilo],
        tell: Callable[[str], None] = print,
        *,
        hosts_trunk: bool = True,
    ) -> None:
        self._folder = folder
        self._silos = list(silos)
        self._tell = tell
        self._hosts_trunk = hosts_trunk
        self._port = free_port()
        self._home = folder / "server" / "flower"
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Environment of every process of the federation, and of `flwr` commands on it."""
        return private_environment(self._home)

    @property
    def trunk_settings(self) -> Settings:
        """Keys of a run whose trunk this federation's silos trust, and which trusts them alone."""
        if not self._hosts_trunk:
            return {}
        keys = self._folder / "server" / "keys"
        return {
            "trunk.host": HOST,
            "tls.mode": "files",
            "tls.certificate": str(keys / "server.crt"),
            "tls.private-key": str(keys / "server.key"),
            "tls.ca": str(keys / "ca.crt"),
            "tls.client-ca": str(keys / "ca.crt"),
        }

    def __enter__(self) -> Self:
        try:
            self._provision()
            self._start_superlink()
            nodes = {self._start_silo(number): one.name for number, one in enumerate(self._silos)}
            self._wait_for_silos(nodes)
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

    def close(self) -> None:
        """Stop every process of the federation. Can be called twice."""
        with undisturbed():
            stop_processes(self._home)
            for process in self._started.values():
                process.wait()

    def log(self, party: str) -> Path:
        """What the programs of a party have printed: `server`, or a silo's name."""
        return self._folder / party / "log"

    def _provision(self) -> None:
        """Make the keys that are not there, each in the folder of the party that it belongs to.

        The CA signs for all of them, as an administrator would whom all of them trust.
        """
        ca, server = self._folder / "ca", self._folder / "server" / "keys"
        for folder in (self._home, server):
            make_folder(folder)
        if not (ca / "ca.crt").exists():
            make_ca(ca)
        if not (server / "server.crt").exists():
            self._issue(ca, server, lambda: make_server(ca, [HOST]))
        for one in self._silos:
            keys = self._keys(one.name)
            make_folder(keys)
            if not (keys / f"{one.name}.key").exists():
                make_silo(keys, one.name)
            if not (keys / f"{one.name}-trunk.crt").exists():
                self._issue(ca, keys, lambda name=one.name: make_silo_certificate(ca, name))  # type: ignore[misc]
        (self._home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\n'
            f'address = "{HOST}:{self._port}"\n'
            f"{rendered({'root-certificates': str(server / 'ca.crt')})}\n",
            encoding="utf-8",
        )

    @staticmethod
    def _issue(ca: Path, folder: Path, make: Callable[[], Sequence[Path]]) -> None:
        """Have the CA sign, and hand over what it made together with its certificate."""
        for path in make():
            path.replace(folder / path.name)
        (folder / "ca.crt").write_bytes((ca / "ca.crt").read_bytes())

    def _keys(self, silo: str) -> Path:
        return self._folder / silo / "keys"

    def _start_superlink(self) -> None:
        keys = self._folder / "server" / "keys"
        self._start(
            "server",
            *("flower-superlink", "--host", HOST, "--port", str(self._port)),
            *("--ssl-ca-certfile", str(keys / "ca.crt")),
            *("--ssl-certfile", str(keys / "server.crt")),
            *("--ssl-keyfile", str(keys / "server.key")),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            self._check_alive()
            if time.monotonic() > end:
                raise FlwrError(self._failure("server", "does not listen"))
            time.sleep(0.1)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((HOST, self._port), 1.0):
            return True
        return False

    def _start_silo(self, number: int) -> str:
        """Register a silo's key and start its SuperNode; returns the node's id."""
        one = self._silos[number]
        keys, own = self._keys(one.name), self._folder / one.name
        public = str(keys / f"{one.name}.pub")
        registered = flwr_json(
            self.environment, "supernode", "register", public, CONNECTION, "--name", one.name
        )
        config: dict[str, Value] = {
            "silo": one.name,
            "state-dir": str(own / "state"),
            "cache-dir": str(own / "cache"),
        }
        if self._hosts_trunk:
            config |= {
                "trunk-ca": str(keys / "ca.crt"),
                "trunk-certificate": str(keys / f"{one.name}-trunk.crt"),
                "trunk-private-key": str(keys / f"{one.name}-trunk.key"),
            }
        if one.data:
            config["data-path"] = one.data
        else:
            config |= {"partition-id": number, "num-partitions": len(self._silos)}
        self._start(
            one.name,
            *("flower-supernode", "--superlink", f"{HOST}:{self._port}"),
            *("--root-certificates", str(keys / "ca.crt")),
            *("--auth-supernode-private-key", str(keys / f"{one.name}.key")),
            *("--host", HOST, "--port", str(free_port())),
            *("--node-config", rendered(config)),
        )
        return str(registered["node-id"])

    def _wait_for_silos(self, names: Mapping[str, str]) -> None:
        """Wait until every node is connected, and tell by name which are not."""
        end, told = time.monotonic() + START_SECONDS, ""
        while missing := self._missing(names):
            self._check_alive()
            line = f"waiting for {len(missing)} of {len(names)} silos: {', '.join(missing)}"
            if time.monotonic() > end:
                raise FlwrError(f"{line}, which did not connect within {START_SECONDS:g} s")
            if line != told:
                told = line
                self._tell(line)
            time.sleep(PAUSE)
        self._tell(f"connected: {', '.join(names.values())}")

    def _missing(self, names: Mapping[str, str]) -> list[str]:
        answer = flwr_json(self.environment, "supernode", "list", CONNECTION)
        online = {str(one["node-id"]) for one in answer["nodes"] if one["status"] == "online"}
        return [name for node, name in names.items() if node not in online]

    def _check_alive(self) -> None:
        for party, process in self._started.items():
            if process.poll() is not None:
                raise FlwrError(self._failure(party, f"ended with status {process.returncode}"))

    def _failure(self, party: str, what: str) -> str:
        said = self.log(party).read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
        program = "SuperLink" if party == "server" else f"SuperNode of {party}"
        return "\n".join([f"the {program} {what}; it said:", *said])

    def _start(self, party: str, program: str, *arguments: str) -> None:
        path = self.log(party)
        with path.open("wb") as log:
            self._started[party] = subprocess.Popen(
                [binary(program), *arguments],
                env=self.environment,
                cwd=path.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches this process only, which then stops the others in order.
                start_new_session=True,
            )
