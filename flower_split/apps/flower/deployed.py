"""Runs of a deployment: submitted, listed, followed and stopped by Flower's own commands.

A run is called by its app and its number among that app's runs at the SuperLink, such as
`quickstart-2`: Flower's own ids have nineteen digits.
"""

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flower_split.apps.flower.flwr_command import FlwrError, flwr_json, flwr_lines
from flower_split.apps.flower.log_digest import last_round
from flower_split.apps.folder.app import App
from flower_split.apps.simulate import Shown, as_option, check_completed, final_status, show_log
from flower_split.config.problems import nearest
from flower_split.reporting.figures import in_seconds

UNTOLD = "N/A"
"""What Flower says of a run of which there is nothing to say."""
WAITING = "pending"
GOING = (WAITING, "starting", "running")
STOP_SECONDS = 90.0
"""Within which a run that was told to stop has ended."""
LOG_SECONDS = 30.0
"""For which the log of a run that goes on is waited for: Flower answers when there is a line."""


@dataclass(frozen=True, kw_only=True)
class DeployedRun:
    """A run, as the SuperLink lists it."""

    name: str
    run_id: str
    status: str
    """Such as `running` or `finished:failed`."""
    details: str
    submitted: str
    """When, as the SuperLink says it."""
    elapsed: str

    @property
    def is_going(self) -> bool:
        """Whether it has not ended."""
        return self.status in GOING


class Deployment:
    """A SuperLink that Flower's configuration has a connection to.

    Args:
        connection: Its name there; empty for the default one.
        environment: Of Flower's commands, with the configuration's place; None for this process's.
    """

    def __init__(self, connection: str = "", environment: Mapping[str, str] | None = None) -> None:
        self._connection = [connection] if connection else []
        binaries = str(Path(sys.executable).parent)
        self._environment = {
            **(os.environ if environment is None else environment),
            "PATH": os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)]),
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def submit(self, app: App) -> DeployedRun:
        """Submit `app` with its overrides.

        Raises:
            FlwrError: the SuperLink does not take it.
        """
        answer = flwr_json(
            self._environment,
            "run",
            str(app.folder),
            *self._connection,
            *as_option(app.overrides),
        )
        run_id = str(answer["run-id"])
        found = [run for run in self.runs() if run.run_id == run_id]
        if not found:
            raise FlwrError(f"the SuperLink took the run {run_id} and does not list it")
        return found[0]

    def runs(self) -> list[DeployedRun]:
        """All runs, the first one first.

        Raises:
            FlwrError: the SuperLink cannot be asked.
        """
        listed = flwr_json(self._environment, "list", *self._connection)["runs"]
        numbers, found = Counter[str](), list[DeployedRun]()
        for run in sorted(listed, key=lambda one: (str(one["pending-at"]), str(one["run-id"]))):
            app = str(run["fab-name"])
            numbers[app] += 1
            details = str(run.get("status-details") or "")
            found.append(
                DeployedRun(
                    name=f"{app}-{numbers[app]}",
                    run_id=str(run["run-id"]),
                    status=str(run["status"]),
                    details=details if details != UNTOLD else "",
                    submitted=str(run["pending-at"]),
                    elapsed=_duration(str(run["elapsed"])),
                )
            )
        return found

    def run(self, name: str = "") -> DeployedRun:
        """The run of that name, or the last one.

        Raises:
            FlwrError: there is none.
        """
        runs = self.runs()
        if not runs:
            raise FlwrError("the SuperLink has no run; `flower-split submit APP` gives it one")
        if not name:
            return runs[-1]
        found = [run for run in runs if name in (run.name, run.run_id)]
        if not found:
            raise FlwrError(f"there is no run {name!r}{nearest(name, [run.name for run in runs])}")
        return found[0]

    def online(self) -> int:
        """How many SuperNodes are connected."""
        answer = flwr_json(self._environment, "supernode", "list", *self._connection)
        return sum(node["status"] == "online" for node in answer["nodes"])

    def log(self, run: DeployedRun, *, follow: bool = False) -> Iterator[str]:
        """The lines of a run's log as they come; all there are now unless they are followed.

        Raises:
            FlwrError: the log cannot be read.
        """
        if run.status == WAITING and not follow:
            return
        how = "--stream" if follow else "--show"
        process = flwr_lines(self._environment, "log", run.run_id, *self._connection, how)
        given_up = threading.Event()

        def give_up() -> None:
            given_up.set()
            process.terminate()

        timer = threading.Timer(LOG_SECONDS, give_up)
        if run.is_going and not follow:
            timer.start()
        try:
            yield from process.stdout or ()
            if process.wait() and not given_up.is_set():
                raise FlwrError(f"the log of {run.name} cannot be read: is the SuperLink there?")
        finally:
            timer.cancel()
            process.terminate()
            process.wait()

    def last_round(self, run: DeployedRun) -> str:
        """The line of the last round of a run; empty before the first."""
        return last_round(self.log(run))

    def follow(self, run: DeployedRun, show: Shown) -> None:
        """Show the run's log until it ends.

        Raises:
            FlwrError: it did not complete.
        """
        show_log(self.log(run, follow=True), show)
        check_completed(*final_status(self._environment, run.run_id, *self._connection))

    def stop(self, run: DeployedRun, sleep: Callable[[float], None] = time.sleep) -> DeployedRun:
        """Have the SuperLink stop the run, and wait until it has ended.

        Raises:
            FlwrError: it has ended already, or does not end.
        """
        if not run.is_going:
            raise FlwrError(f"{run.name} is not going: it ended as {run.status}")
        flwr_json(self._environment, "stop", run.run_id, *self._connection)
        end = time.monotonic() + STOP_SECONDS
        while (now := self.run(run.run_id)).is_going:
            if time.monotonic() > end:
                raise FlwrError(
                    f"{run.name} was told to stop and goes on: its status is {now.status}"
                )
            sleep(1.0)
        return now


def _duration(elapsed: str) -> str:
    """What Flower tells in seconds, as a person reads it; anything else as it is."""
    try:
        return in_seconds(float(elapsed))
    except ValueError:
        return elapsed
