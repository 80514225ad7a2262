"""Flower's own commands: run as processes, with an answer that is read and a failure that is one.

`flwr run --stream` exits with 0 when the run failed, and some commands say on standard output only
that they did: what counts here is the answer itself.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flower_split.errors import FlowerSplitError


class FlwrError(FlowerSplitError, RuntimeError):
    """A command of Flower, or a run that was given to one, failed."""


def flwr_json(environment: Mapping[str, str], *arguments: str) -> dict[str, Any]:
    """Run a `flwr` command and return what it answers as JSON.

    Args:
        environment: Of the command.
        arguments: Of the command; `--format json` is added.

    Raises:
        FlwrError: with what the command said, when it failed.
    """
    done = subprocess.run(
        [binary("flwr"), *arguments, "--format", "json"],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    start = done.stdout.find("{")
    answer: dict[str, Any] = {}
    if start >= 0:
        answer, _ = json.JSONDecoder().raw_decode(done.stdout[start:])
    if done.returncode != 0 or not answer or answer.get("success") is False:
        said = answer.get("error-message") or (done.stdout + done.stderr).strip()
        raise FlwrError(f"flwr {arguments[0]} failed: {said}")
    return answer


def flwr_lines(environment: Mapping[str, str], *arguments: str) -> "subprocess.Popen[str]":
    """Start a `flwr` command, whose lines are read from its standard output."""
    return subprocess.Popen(
        [binary("flwr"), *arguments],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def binary(name: str) -> str:
    """The path of a program of Flower's, that beside this interpreter first.

    Raises:
        FlwrError: it is not installed.
    """
    path = Path(sys.executable).parent / name
    if path.exists():
        return str(path)
    found = shutil.which(name)
    if found is None:
        raise FlwrError(
            f"{name} is not installed beside {sys.executable}: install the extra "
            "flower-split[simulation]"
        )
    return found
