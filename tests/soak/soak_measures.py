"""What a soak measures: descriptors, threads and memory of its processes, files, and losses."""

import re
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from federation import Federation

MIB = 1 << 20
ROLES = ("flower-superlink", "flower-supernode", "flwr-serverapp")
"""Processes that live on over rounds."""
LEAST_SECONDS, LEAST_SAMPLES = 60.0, 8
"""Of a process's life, to tell whether it grows."""

GROWTH = {"descriptors": (12, 0.1), "threads": (12, 0.1), "MiB": (48, 0.15)}
"""By how much the last quarter of a process's life may be above the second one: a number, and a
part of what it was. Allocators and pools fill up in the first."""

REASONS = {
    "a session broke off": r"its session at the trunk (broke off|was finished), and no reply",
    "no reply in time": r"no reply within [\d.]+ s",
    "a session was not finished": r"the silo did not finish its session at the trunk",
    "the trunk was gone, full or done with it": (
        r"(TrunkUnavailable|TrunkBusy|Token|Sequence|ForeignRun|Certificate)Error: trunk at |"
        r"trunk at \S+: (the session is lost|something accepts connections there|UNAVAILABLE|"
        r"the connection was |closed the connection|no answer|did not answer)"
    ),
    "a node came back while its old self was known": (
        r"HandshakeError: .*\bname\b|trunk at \S+: silo: another node of this run is named "
    ),
    "Flower lost a node or message": (
        r"Error: ((Reply )?Message|Node) Unavailable|ClientApp stopped responding|"
        r"Reply message objects are unavailable"
    ),
    "the ServerApp was killed": r"finished:failed: No heartbeat",
    "too few silos counted": (
        r"finished:failed: .*round \d+: (training|evaluation) (failed on every|counts of)"
    ),
    "too few silos connected": r"finished:failed: .*only \d+ of \d+ silos connected",
    "flwr did not answer": r"flwr run: ",
}
"""Why a silo's round or a run may fail when processes are killed, frozen and cut off, as such a
reason begins."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One process at one moment."""

    seconds: float
    descriptors: int
    threads: int
    mib: float


@dataclass
class Measures:
    """Samples of every long-lived process, by what it is."""

    samples: dict[tuple[str, int], list[Sample]] = field(default_factory=dict)

    def take(self, federation: Federation) -> None:
        """Measure every living process of `federation` once."""
        names = {process.pid: name for name, process in federation.processes.items()}
        for process in federation.members():
            with suppress(psutil.Error, IndexError):
                words = " ".join(process.cmdline())
                role = next((role for role in ROLES if role in words), "")
                if not role or process.status() == psutil.STATUS_STOPPED:
                    continue
                with process.oneshot():
                    sample = Sample(
                        seconds=time.monotonic(),
                        descriptors=process.num_fds(),
                        threads=process.num_threads(),
                        mib=process.memory_info().rss / MIB,
                    )
                who = names.get(process.pid, role)
                self.samples.setdefault((who, process.pid), []).append(sample)

    def table(self) -> list[dict[str, object]]:
        """A row for every process that lived long enough, with its growth."""
        rows = []
        for (who, pid), samples in self.samples.items():
            life = samples[-1].seconds - samples[0].seconds
            if life < LEAST_SECONDS or len(samples) < LEAST_SAMPLES:
                continue
            early, late = _quarter(samples, 0.25, 0.5), _quarter(samples, 0.75, 1.0)
            row: dict[str, object] = {"process": who, "pid": pid, "minutes": round(life / 60, 1)}
            for name, value in (("descriptors", 0), ("threads", 1), ("MiB", 2)):
                row[name] = [round(early[value], 1), round(late[value], 1)]
            rows.append(row)
        return rows


def _quarter(samples: Sequence[Sample], start: float, end: float) -> tuple[float, float, float]:
    first, last = samples[0].seconds, samples[-1].seconds
    within = [s for s in samples if start <= (s.seconds - first) / (last - first) <= end]
    within = within or list(samples)
    return (
        statistics.median(s.descriptors for s in within),
        statistics.median(s.threads for s in within),
        statistics.median(s.mib for s in within),
    )


def growth_problems(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """One sentence for everything that grew beyond its bound."""
    found = []
    for row in rows:
        for name, (number, part) in GROWTH.items():
            early, late = row[name]  # type: ignore[misc]
            if late > early + number + part * early:
                found.append(
                    f"{row['process']} (process {row['pid']}) went from {early:g} to {late:g} "
                    f"{name} in {row['minutes']} minutes"
                )
    return found


def kind_of(reason: str) -> str:
    """The known kind of a failure; empty for one that is not known."""
    found = (kind for kind, words in REASONS.items() if re.match(words, reason, re.DOTALL))
    return next(found, "")


def counted(reasons: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """How often each known kind came, and the reasons that are of none."""
    told = list(reasons)
    kinds = Counter(kind for reason in told if (kind := kind_of(reason)))
    return dict(kinds), sorted({reason for reason in told if not kind_of(reason)})


def files_in(folder: Path) -> int:
    """How many files are below `folder`."""
    return sum(path.is_file() for path in folder.rglob("*"))


def loss_problem(lap: str, losses: Sequence[float], reference: Sequence[float], band: float) -> str:
    """What is wrong with a lap's last loss; empty where it is in the band.

    The band is `band` times what the undisturbed run learned, on both sides of its last loss.
    """
    if not losses:
        return f"{lap} reported no loss"
    start, end = reference[0], reference[-1]
    width = band * abs(start - end)
    if abs(losses[-1] - end) <= width:
        return ""
    return (
        f"{lap} ended with a loss of {losses[-1]:.4f}; undisturbed it went from {start:.4f} to "
        f"{end:.4f}, and the band is {end:.4f} ± {width:.4f}"
    )
