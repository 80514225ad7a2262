"""Jobs: runs spread over worker processes, each finished one kept in a file of JSON lines.

A benchmark that was stopped resumes from there: a job that the file has is not run again.
"""

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comparison.entries import ENTRIES, Entry, Trial
from comparison.settings import Settings
from flower_split.private_files import make_folder

Outcome = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to make."""

    entry: Entry
    trial: Trial
    seed: int

    def key(self, settings: Settings) -> str:
        """Names the run; the same for the same run of the same task only."""
        entry = {name: value for name, value in asdict(self.entry).items() if name != "options"}
        described = [entry, dict(self.trial), self.seed, settings.of_one_run()]
        text = json.dumps(described, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Notebook:
    """Outcomes by key, in a file that grows by a line a run.

    Args:
        path: Of the file; made if missing. A last line that was cut off is ignored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outcomes: dict[str, Outcome] = {}
        make_folder(path.parent)
        whole = b""
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            try:
                noted = json.loads(line)
            except ValueError:
                break
            self._outcomes[noted["key"]] = noted["outcome"]
            whole += line if line.endswith(b"\n") else line + b"\n"
        path.write_bytes(whole)

    def __contains__(self, key: str) -> bool:
        return key in self._outcomes

    def __getitem__(self, key: str) -> Outcome:
        return self._outcomes[key]

    def add(self, key: str, told: Mapping[str, Any], outcome: Outcome) -> None:
        """Keep an outcome; `told` says in words what it is of."""
        line = json.dumps({"key": key, **told, "outcome": outcome})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._outcomes[key] = outcome


def finish(
    jobs: Iterable[Job],
    settings: Settings,
    notebook: Notebook,
    adapters: Path,
    *,
    workers: int,
    say: Callable[[str], None],
) -> None:
    """Have every job in the notebook, in `workers` processes of one thread each.

    Args:
        jobs: To finish, in this order.
        settings: Of the task.
        notebook: Where outcomes are kept.
        adapters: Folder for the adapters of entries that have a twin, and of the twins.
        workers: Processes; 0 runs everything in this one.
        say: Called with a line for every job.
    """
    missing = {job.key(settings): job for job in jobs if job.key(settings) not in notebook}
    twins = {entry.twin for entry in ENTRIES} - {""}
    calls = {
        key: (
            job,
            settings,
            adapters / f"{key}.safetensors" if job.entry.twin or job.entry.name in twins else None,
        )
        for key, job in missing.items()
    }
    done = 0

    def note(key: str, outcome: Outcome) -> None:
        nonlocal done
        done += 1
        job = missing[key]
        told = {"entry": job.entry.name, "trial": dict(job.trial), "seed": job.seed}
        notebook.add(key, told, outcome)
        say(
            f"{done}/{len(missing)}  {job.entry.name}, seed {job.seed}, {dict(job.trial)}: "
            f"{outcome['failure'] or format(outcome['seconds'], '.0f') + ' s'}"
        )

    if workers == 0:
        for key, call in calls.items():
            note(key, _work(*call))
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers inherit it
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
        futures = {pool.submit(_work, *call): key for key, call in calls.items()}
        try:
            for future in as_completed(futures):
                note(futures[future], future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _begin() -> None:
    import torch
    from transformers.utils.logging import disable_progress_bar

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started the worker also ends it
    torch.set_num_threads(1)
    disable_progress_bar()


def _work(job: Job, settings: Settings, adapter: Path | None) -> Outcome:
    # Imported late, as the process that only hands out jobs has no use for a model.
    from comparison.running import run, silent

    with silent():
        return run(job.entry, job.trial, job.seed, settings, adapter)
