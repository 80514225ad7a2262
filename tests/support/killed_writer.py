"""What a process leaves that is killed while it saves: at each of its calls to the file system.

As a script it imports everything once. For every call that a save makes, it forks a process that
replaces an old state by a new one and kills itself at that call, and then it reads what is there.
It prints, as JSON, what it read by the kind of state: `old`, `new`, or `refused`.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from started_processes import python_path

CALLS = ("open", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")
"""Of `os`, through which all that is saved goes, besides the writing itself."""


@dataclass(frozen=True)
class Kind:
    """A kind of state: how it is saved in a folder, and which of two is read there."""

    save: Callable[[Path, int], object]
    read: Callable[[Path], int]
    """The number that was saved; raises an error of ours where it is neither."""


def kinds() -> dict[str, Kind]:
    import numpy as np
    import torch
    from pairs import LORA
    from safetensors.torch import load_file
    from tiny_models import tiny_model

    from flower_split.adapters import SessionState, initial_state, resolve_lora, save_adapter
    from flower_split.adapters.reading import TENSORS, read_adapter_folder
    from flower_split.checkpoint import Checkpoint, CheckpointStore, find_checkpoint
    from flower_split.client.state.state_file import StateFile

    model = tiny_model()
    plan, state = resolve_lora(model, LORA), initial_state(model, LORA, seed=1)

    def checkpoint(folder: Path, number: int) -> None:
        arrays = {"w": np.full(9_000, number, np.float64)}
        with CheckpointStore(folder) as store:
            store.save(Checkpoint(server_round=number, arrays=arrays, state={"n": number}))

    def of_checkpoint(folder: Path) -> int:
        found = find_checkpoint(folder)
        assert found is not None and (found.arrays["w"] == found.state["n"]).all()
        return int(found.state["n"])

    def adapter(folder: Path, number: int) -> None:
        tensors = {name: torch.full_like(tensor, float(number)) for name, tensor in state.items()}
        save_adapter(tensors, plan, folder, base_model=f"model-{number}")

    def of_adapter(folder: Path) -> int:
        told = json.loads((folder / "adapter_config.json").read_bytes())["base_model_name_or_path"]
        read_adapter_folder(folder)
        found = load_file(folder / TENSORS)
        (number,) = {float(tensor.unique()) for tensor in found.values()}
        assert told == f"model-{number:g}", "one's tensors with the other's configuration"
        return int(number)

    def session(folder: Path, number: int) -> None:
        moments = {"a": torch.full((5_000,), float(number))}
        StateFile.at(folder, 1, "a" * 64).write(SessionState(moments=moments))

    def of_session(folder: Path) -> int:
        (number,) = StateFile.at(folder, 1, "a" * 64).read().moments["a"].unique()
        return int(number)

    return {
        "checkpoint": Kind(checkpoint, of_checkpoint),
        "adapter": Kind(adapter, of_adapter),
        "session state": Kind(session, of_session),
    }


def killed_at(kind: Kind, folder: Path, number: int) -> bool:
    """Whether a process was killed at its call of that number; else it has saved."""
    child = os.fork()
    if child == 0:
        counted = itertools.count()

        def dying(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(counted) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        for name in CALLS:
            setattr(os, name, dying(getattr(os, name)))
        kind.save(folder, 2)
        os.kill(os.getpid(), signal.SIGTERM)  # no interpreter's end: it is the parent's
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) == signal.SIGKILL


def left(kind: Kind) -> list[str]:
    from flower_split.errors import FlowerSplitError

    found = []
    for number in itertools.count():
        folder = Path(tempfile.mkdtemp())
        try:
            kind.save(folder, 1)
            killed = killed_at(kind, folder, number)
            try:
                found.append({1: "old", 2: "new"}[kind.read(folder)])
            except (FlowerSplitError, FileNotFoundError):
                found.append("refused")
            kind.save(folder, 3)  # what was left is in nobody's way
            assert kind.read(folder) == 3
        finally:
            shutil.rmtree(folder)
        if not killed:
            return found
    raise AssertionError


def outcomes() -> dict[str, list[str]]:
    """By kind of state, what was read after a kill at the first call, the second, and so on; the
    last one was not killed."""
    done = subprocess.run(
        [sys.executable, __file__],
        env={
            **os.environ,
            "PYTHONPATH": python_path(Path(__file__).parent, *sys.path),
            "GRPC_ENABLE_FORK_SUPPORT": "0",
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps({name: left(kind) for name, kind in kinds().items()}))
