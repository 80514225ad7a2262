"""Flower's own commands: run as processes, with an answer that is read and a failure that is one.

`flwr run --stream` exits with 0 when the run failed, and some commands say on standard output only
that they did: what counts here is the answer itself.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flower_split.errors import FlowerSplitError
from flower_split.text_tables import read_toml

MANAGED = ":local:"
"""In place of an address, a SuperLink that Flower starts on this machine for simulations."""


class FlwrError(FlowerSplitError, RuntimeError):
    """A command of Flower, or a run that was given to one, failed."""


def flwr_json(environment: Mapping[str, str], *arguments: str) -> dict[str, Any]:
    """Run a `flwr` command and return what it answers as JSON.

    Args:
        environment: Of the command.
        arguments: Of the command; `--format json` is added.

    Raises:
        FlwrError: with what the command said, when it failed; or it would start a SuperLink.
    """
    _refuse_managed(environment, arguments)
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


def _refuse_managed(environment: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Raise `FlwrError` where Flower would start a SuperLink of its own, and leave it running.

    It does where its configuration is missing, or has no other address for the connection.
    """
    home = environment.get("FLWR_HOME") or os.path.expanduser("~/.flwr")
    file = Path(home) / "config.toml"
    try:
        named = read_toml(file.read_text(encoding="utf-8")).get("superlink", {})
    except FileNotFoundError:
        named = {"default": "local", "local": {"address": MANAGED}}
    except (OSError, ValueError):
        return  # of which Flower says what is wrong
    name = next((word for word in arguments if isinstance(named.get(word), dict)), "")
    connection = named.get(name or named.get("default"))
    if isinstance(connection, dict) and connection.get("address") == MANAGED:
        raise FlwrError(
            f"{file} names no SuperLink of a deployment: add [superlink.NAME] with its address "
            "there, and name it with --superlink. `flower-split run APP` needs none, and "
            "`flower-split deployment local APP` makes its own"
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
            f"{name}, a program of Flower's, is not beside {sys.executable} and not on the PATH: "
            "install flwr there anew, pip install --force-reinstall --no-deps flwr"
        )
    return found
