"""Trunks on Ray for tests: of a tiny model, with what the same trunk is in one process."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from steps import run_config

from flower_split.config.run_config import read_run_config
from flower_split.server.cluster.ray_chain import ray_chain
from flower_split.server.engine import TrunkEngine
from flower_split.server.hosting.hosted_run import HostedRun
from flower_split.server.hosting.resolving import resolve_run
from flower_split.server.stages.chain import Chain

SECONDS = 90.0
PARTS = ("raylet", "gcs_server", "ray::")
"""In the command lines of Ray's processes."""


def settings_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """Run-config values of a federated trunk whose silos may do everything."""
    given = {"lora.dropout": 0.1, "trunk.shares-adapter": True, "train.keep-optimizer": True}
    return run_config(folder, **{**given, **changes})


@contextmanager
def on_ray(folder: Path, stages: int, replicas: int = 1, **changes: Any) -> Iterator[Chain[Any]]:
    """The trunk of a run on Ray."""
    size = {"trunk.stages": stages, "trunk.replicas": replicas}
    config = read_run_config(settings_of(folder, **{"trunk.engine": "ray", **size, **changes}))
    with ray_chain(config, resolve_run(config)) as chain:
        yield chain


def in_one_process(folder: Path, **changes: Any) -> TrunkEngine:
    """The same trunk, here."""
    config = read_run_config(settings_of(folder, **changes))
    engine = HostedRun(config, resolve_run(config)).engine
    assert isinstance(engine, TrunkEngine)
    return engine


def ray_processes(parts: tuple[str, ...] = PARTS, *, of: int = 0) -> list[psutil.Process]:
    """Ray's processes that live, by parts of their command lines, of a process's own clusters.

    Other tests may run Ray beside this one.

    Args:
        parts: Of the command lines.
        of: The process; 0 for this one.
    """
    found = []
    for process in psutil.Process(of or None).children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
        if alive and any(part in command for part in parts):
            found.append(process)
    return found


def gone(processes: list[psutil.Process], seconds: float = 30.0) -> bool:
    """Whether all of them end in time."""
    _, left = psutil.wait_procs(processes, timeout=seconds)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in left)


def kill_stage(chain: Chain[Any], replica: int, stage: int) -> int:
    """End a stage's process as a machine's failure would; its number."""
    facts = chain.replicas[replica][stage].load(SECONDS)
    os.kill(facts.pid, signal.SIGKILL)
    return int(facts.pid)
