"""What a soak does to a federation: it kills, freezes and cuts off, at random by a seed."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import psutil
from federation import Federation
from soak_proxy import CuttableProxy

WEIGHTS = {
    "kill a silo's app": 4,
    "freeze a silo's app": 3,
    "cut the trunk's connections": 4,
    "silence the trunk's connections": 3,
    "kill the trunk": 2,
    "freeze the trunk": 2,
    "kill a silo's node": 2,
    "freeze a silo's node": 2,
}
"""How often each is chosen, relative to the others. The trunk is in the ServerApp's process."""
LONGEST_FREEZE, LONGEST_ABSENCE = 20.0, 15.0
"""Seconds."""


@dataclass
class Faults:
    """Disturbs `federation`, and undoes what is to be undone: nodes come back, processes thaw.

    Args:
        federation: Running.
        proxy: Between its silos and the trunk.
        chance: Draws what, whom and for how long.
        weights: As `WEIGHTS`.
    """

    federation: Federation
    proxy: CuttableProxy
    chance: random.Random
    weights: dict[str, int] = field(default_factory=lambda: dict(WEIGHTS))
    done: list[tuple[float, str]] = field(default_factory=list)
    """Time and what was done."""

    def __post_init__(self) -> None:
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._chosen = ""

    def disturb(self) -> str:
        """Do one of them to someone; returns what, empty where nobody is there for it.

        It is then the same one's turn again, so that what needs a session finds one.
        """
        if not self._chosen:
            (self._chosen,) = self.chance.choices(list(self.weights), list(self.weights.values()))
        told = ""
        with suppress(psutil.Error, ProcessLookupError):
            told = self._do(self._chosen)
        if told:
            self.done.append((time.time(), told))
            self._chosen = ""
        return told

    def _do(self, what: str) -> str:
        verb, _, whom = what.partition(" ")
        if "connections" in what:
            held = self.proxy.connections
            if not held:
                return ""
            if verb == "cut":
                self.proxy.cut()
                return f"{what} ({held})"
            seconds = self.chance.uniform(2.0, LONGEST_FREEZE)
            self.proxy.silence(seconds)
            return f"{what} ({held}) for {seconds:.0f} s"
        if whom == "a silo's node":
            return self._node(verb, what)
        part = "flwr-serverapp" if whom == "the trunk" else "flwr-clientapp"
        found = sorted(self.federation.members(part), key=lambda process: process.pid)
        if not found:
            return ""
        process = self.chance.choice(found)
        if verb == "kill":
            process.kill()
            return f"{what} (process {process.pid})"
        return f"{what} (process {process.pid}) for {self._freeze([process]):.0f} s"

    def _node(self, verb: str, what: str) -> str:
        number = self.chance.randrange(len(self.federation.nodes))
        name = f"silo{number}"
        process = self.federation.processes[name]
        if process.poll() is not None:
            return ""
        group = [psutil.Process(process.pid)]
        group += group[0].children(recursive=True)
        if verb == "freeze":
            return f"{what} ({name}) for {self._freeze(group):.0f} s"
        os.killpg(process.pid, signal.SIGKILL)  # as if its machine had failed
        process.wait()
        seconds = self.chance.uniform(1.0, LONGEST_ABSENCE)
        self._later.append((time.monotonic() + seconds, lambda: self.federation.start_node(number)))
        return f"{what} ({name}) for {seconds:.0f} s"

    def _freeze(self, processes: list[psutil.Process]) -> float:
        seconds = self.chance.uniform(2.0, LONGEST_FREEZE)
        for process in processes:
            with suppress(psutil.Error):
                process.suspend()
        self._later.append((time.monotonic() + seconds, lambda: self._thaw(processes)))
        return seconds

    def _thaw(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            with suppress(psutil.Error):
                process.resume()

    def undo_due(self, *, everything: bool = False) -> None:
        """Undo what is due; or everything, so that the federation is whole again."""
        now = time.monotonic()
        due = [act for at, act in self._later if everything or at <= now]
        self._later = [(at, act) for at, act in self._later if not (everything or at <= now)]
        for act in due:
            act()
