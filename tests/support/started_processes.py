"""Python processes that tests start, and what they find on their path."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUPPORT = Path(__file__).parent
WITHOUT_QUANTIZERS = Path(__file__).parent / "without_quantizers"


def python_path(*folders: str | Path) -> str:
    """A value of `PYTHONPATH` for processes that quantize nothing: `folders`, and what is set."""
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    found = dict.fromkeys([str(WITHOUT_QUANTIZERS), *map(str, folders), *filter(None, inherited)])
    return os.pathsep.join(found)


@contextmanager
def running(script: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A process of `script`, which finds the modules of this folder; killed at the end.

    Args:
        script: Python.
        arguments: Its own.
    """
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path(SUPPORT, *sys.path)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: "subprocess.Popen[str]") -> str:
    """The next one that it prints; empty where there is none."""
    assert process.stdout is not None
    return process.stdout.readline().strip()
