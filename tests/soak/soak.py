"""A soak: a real federation trains for minutes or hours while it is killed, frozen and cut off.

::

    python tests/soak/soak.py --minutes 60 --out outputs/soak

SuperLink, SuperNodes, ServerApp and ClientApps are processes of their own; silos reach the trunk
through a proxy. After an undisturbed lap, the reference, the same run is done lap after lap on the
same federation, and about once a minute something happens to it, drawn by `--seed`. A run whose
ServerApp was killed, or which had too few silos in a round, is resumed. In the end

- every lap's last loss is within `--band` of what the reference learned, around its last loss,
- no process has grown in descriptors, threads or memory (`soak_measures.GROWTH`),
- what silos and processes left in files is bounded,
- every failure of a silo's round or of a run has a reason of a known kind
  (`soak_measures.REASONS`).

A table is printed and `soak.json` written; the exit status is 0 where all of that holds.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support"), str(ROOT / "tests/soak")]

from federation import COMPLETED, Federation, Node, Run, free_port, write_app  # noqa: E402
from soak_faults import Faults  # noqa: E402
from soak_measures import (  # noqa: E402
    Measures,
    counted,
    files_in,
    growth_problems,
    loss_problem,
)
from soak_proxy import CuttableProxy  # noqa: E402
from started_processes import python_path  # noqa: E402
from tiny_checkpoint import save_texts, save_tiny_model  # noqa: E402

from flower_split.errors import FlowerSplitError  # noqa: E402
from flower_split.reporting import RunResult, read_result  # noqa: E402

SAMPLE_SECONDS, LOOK_SECONDS = 3.0, 0.5
FLWR_FAILED = (AssertionError, subprocess.SubprocessError)
"""What `Federation` raises where a `flwr` command does not answer, or not in time."""
MOST_ATTEMPTS = 30
LAP_SECONDS = 3600.0
STATE_FILES_A_LAP = 4
"""Files of a silo's state that a lap may leave, for each silo: one that is cut off in the last
round does not get to sweep its own."""


@dataclass(kw_only=True)
class Lap:
    """One run, from its first attempt to its end."""

    name: str
    losses: list[float] = field(default_factory=list)
    """Over the silos, before the first round and after every one."""
    attempts: int = 0
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)
    """Of silos' failures and of runs that ended early."""
    state_files: int = 0
    """Below the silos' state folder, after it."""


@dataclass(kw_only=True)
class Settings:
    """Of one soak."""

    minutes: float = 60.0
    silos: int = 3
    rounds: int = 6
    seed: int = 1
    every: float = 60.0
    band: float = 0.3


class Soak:
    """See the module.

    Args:
        folder: Empty; for all that is written.
        settings: How long, how large.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.measures, self.laps = Measures(), list[Lap]()
        self.chance = random.Random(settings.seed)
        self.trunk_port = free_port()
        self.disturbed_until = 0.0

    def run(self) -> dict[str, object]:
        """Everything; returns what `soak.json` has."""
        home = self.folder / "home"
        nodes = [
            Node(config={"partition-id": i, "num-partitions": self.settings.silos})
            for i in range(self.settings.silos)
        ]
        begun = time.monotonic()
        with CuttableProxy(self.trunk_port) as proxy, Federation(home, nodes) as federation:
            app = self._app(proxy.port)
            faults = Faults(federation, proxy, self.chance)
            reference = self._lap("reference", federation, app, None)
            self.disturbed_until = time.monotonic() + 60.0 * self.settings.minutes
            while time.monotonic() < self.disturbed_until:
                self._lap(f"lap {len(self.laps)}", federation, app, faults)
            left = self._left_in_tmp(federation)
        return self._report(reference, faults, left, time.monotonic() - begun)

    def _app(self, proxy_port: int) -> Path:
        config = {
            "model.name": str(save_tiny_model(self.folder / "model")),
            "data.path": str(save_texts(self.folder / "texts.jsonl")),
            "data.eval-fraction": 0.25,
            "train.batch-size": 3,
            "train.local-steps": 8,
            "train.learning-rate": 1e-2,
            "train.max-length": 16,
            "lora.r": 2,
            "num-server-rounds": self.settings.rounds,
            "round-timeout": 120.0,
            "strategy.min-nodes": max(1, self.settings.silos - 1),
            "trunk.port": self.trunk_port,
            "trunk.advertise": f"127.0.0.1:{proxy_port}",
        }
        return write_app(self.folder / "app", config)

    def _lap(self, name: str, federation: Federation, app: Path, faults: Faults | None) -> Lap:
        lap, begun = Lap(name=name), time.monotonic()
        output = self.folder / "outputs" / name.replace(" ", "-")
        ended: Run | None = None
        result, told = None, set[tuple[int, str, str]]()
        while lap.attempts < MOST_ATTEMPTS and (ended is None or ended.status != COMPLETED):
            lap.attempts += 1
            try:
                run_id = federation.submit(app, output_dir=str(output), resume=lap.attempts > 1)
            except FLWR_FAILED as error:
                lap.reasons.append(f"flwr run: {str(error)[-500:]}")
                continue
            ended = self._watch(run_id, federation, faults, begun + LAP_SECONDS)
            if ended.status != COMPLETED:
                lap.reasons.append(f"{ended.status}: {ended.details}"[:2000])
            result = _result(output / "result.json", lap)
            for one in () if result is None else result.rounds:
                told |= {(one.server_round, silo, why) for silo, why in one.failures.items()}
        if faults is not None:
            faults.undo_due(everything=True)
        lap.reasons += [why for *_, why in sorted(told)]
        for one in () if result is None else result.rounds:
            loss = one.aggregated.get("eval-loss")
            lap.losses += [float(loss)] if isinstance(loss, int | float) else []
        lap.seconds = time.monotonic() - begun
        lap.state_files = files_in(federation.folder / "state")
        self.laps.append(lap)
        print(
            f"{name}: {lap.seconds:.0f} s, {lap.attempts} attempts, {len(lap.reasons)} failures, "
            f"losses {' '.join(f'{loss:.3f}' for loss in lap.losses)}",
            flush=True,
        )
        return lap

    def _watch(
        self, run_id: str, federation: Federation, faults: Faults | None, latest: float
    ) -> Run:
        """Disturb and measure until the run has ended."""
        disturb_at = time.monotonic() + self._pause()
        sample_at = asked_at = time.monotonic()
        while True:
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            if faults is not None:
                faults.undo_due()
                due = disturb_at <= now < self.disturbed_until
                if due and (told := faults.disturb()):
                    print(f"  {time.strftime('%H:%M:%S')} {told}", flush=True)
                    disturb_at = now + self._pause()
            if now >= sample_at:
                self.measures.take(federation)
                sample_at = now + SAMPLE_SECONDS
            if now >= asked_at + 5.0 and not federation.members("flwr-serverapp"):
                with suppress(*FLWR_FAILED):
                    found = federation.state(run_id)
                    if found.status.startswith("finished"):
                        return found
                asked_at = time.monotonic()
            if now > latest:
                with suppress(*FLWR_FAILED):
                    federation.flwr("stop", run_id)
                return Run(run_id, "hung", f"the run had not ended after {LAP_SECONDS:g} s")

    def _pause(self) -> float:
        return self.settings.every * self.chance.uniform(0.5, 1.5)

    def _left_in_tmp(self, federation: Federation) -> list[str]:
        """What killed processes left in the temporary folder, which is then removed."""
        deadline = time.monotonic() + 60.0
        while federation.app_processes() and time.monotonic() < deadline:
            time.sleep(0.5)
        left = federation.temporary()
        for path in (federation.folder / "tmp").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return left

    def _report(
        self, reference: Lap, faults: Faults, left: list[str], seconds: float
    ) -> dict[str, object]:
        rows = self.measures.table()
        kinds, unknown = counted(reason for lap in self.laps for reason in lap.reasons)
        problems = growth_problems(rows)
        problems += [f"a failure of no known kind: {reason}" for reason in unknown]
        if len(reference.losses) != self.settings.rounds + 1 or reference.reasons:
            problems.append(f"the undisturbed run failed: {reference}")
        else:
            for lap in self.laps[1:]:
                said = loss_problem(lap.name, lap.losses, reference.losses, self.settings.band)
                problems += [said] if said else []
        for before, lap in zip(self.laps, self.laps[1:], strict=False):
            grown = lap.state_files - before.state_files
            if grown > STATE_FILES_A_LAP * self.settings.silos:
                problems.append(f"{lap.name} left {grown} more files of silos' states")
        kills = sum(told.startswith("kill") for _, told in faults.done)
        if len(left) > 20 * max(1, kills):
            problems.append(f"{len(left)} temporary files were left, after {kills} kills")
        return {
            "settings": vars(self.settings),
            "minutes": round(seconds / 60, 1),
            "processors": os.cpu_count(),
            "laps": [vars(lap) for lap in self.laps],
            "faults": [{"time": at, "what": told} for at, told in faults.done],
            "failures": kinds,
            "processes": rows,
            "temporary_files": left,
            "problems": problems,
        }


def _result(path: Path, lap: Lap) -> RunResult | None:
    """What a run has written; None where it was killed before it wrote any."""
    if not path.exists():
        return None
    try:
        return read_result(path)
    except FlowerSplitError as error:
        lap.reasons.append(str(error))
        return None


def show(report: dict[str, object]) -> None:
    """Print the report."""
    print(f"\n{'process':<12}{'minutes':>8}{'descriptors':>16}{'threads':>14}{'MiB':>18}")
    for row in report["processes"]:  # type: ignore[attr-defined]
        told = (
            f"{row[name][0]:g} -> {row[name][1]:g}" for name in ("descriptors", "threads", "MiB")
        )
        print(
            f"{row['process'][-12:]:<12}{row['minutes']:>8}{{:>16}}{{:>14}}{{:>18}}".format(*told)
        )
    print("\nfailures by kind:")
    for kind, count in report["failures"].items():  # type: ignore[attr-defined]
        print(f"{count:>5}  {kind}")
    print(
        f"\n{len(report['faults'])} faults, {len(report['laps']) - 1} laps, "  # type: ignore[arg-type]
        f"{report['minutes']} minutes"
    )
    for problem in report["problems"]:  # type: ignore[attr-defined]
        print(f"PROBLEM: {problem}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Settings()
    for name, text in (
        ("minutes", "of faults; the lap that is then under way is run to its end"),
        ("silos", "SuperNodes"),
        ("rounds", "of a lap"),
        ("seed", "of the faults"),
        ("every", "seconds between two faults, in the mean"),
        ("band", "part of what is learned by which a lap's loss may differ"),
    ):
        value = getattr(default, name)
        parser.add_argument(f"--{name}", type=type(value), default=value, help=text)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/soak")
    given = vars(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # and all is stopped
    os.environ["PYTHONPATH"] = python_path(ROOT)  # whatever is installed: this tree is soaked
    out: Path = given.pop("out").absolute()
    work = out / time.strftime("%Y%m%d-%H%M%S")
    work.mkdir(parents=True)
    report = Soak(work, Settings(**given)).run()
    (out / "soak.json").write_text(json.dumps(report, indent=1) + "\n")
    show(report)
    return bool(report["problems"])


if __name__ == "__main__":
    sys.exit(main())
