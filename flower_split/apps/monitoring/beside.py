"""The live page beside a run: a process of its own, so that watching takes nothing of the trunk's.

The process ends with the one that started it, however that ends: it reads the end of a pipe. Pages
that are open see the run's end before.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flower_split.errors import ConfigError, FlowerSplitError

KEY = "monitor-address"
BEGINS = 60.0
"""Seconds that the process has to say its address."""
STAYS = 2.0
"""Seconds that it stays after the run: the page looks once a second."""
ENDS = 10.0
"""Seconds that it has to end by itself then."""
_READY, _FAILED = "ready", "failed: "


@contextmanager
def monitor_beside(folder: Path, address: str) -> Iterator[list[str]]:
    """The page of the run in `folder` on `address` while the block runs, and a little longer.

    Yields:
        What to tell the operator: where it is, and which token it needs.

    Raises:
        ConfigError: it cannot be served there.
    """
    command = [sys.executable, "-m", __spec__.name, str(folder), address]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,  # a terminal's Ctrl-C is the run's, which has more to tell
    )
    try:
        yield _told(process)
    finally:
        _close(process)


def main(folder: str, address: str) -> None:
    """Serve until standard input ends; what is said goes to standard output, line by line."""
    from flower_split.apps.monitoring.serving import serve

    def say(text: str) -> None:
        print(text, flush=True)

    def lasts() -> None:
        print(_READY, flush=True)
        sys.stdin.read()
        time.sleep(STAYS)

    try:
        serve(Path(folder), address, say=say, name=KEY, lasts=lasts)
    except FlowerSplitError as error:
        print(_FAILED + " ".join(str(error).split()), flush=True)


def _told(process: "subprocess.Popen[str]") -> list[str]:
    said = list[str]()
    late = threading.Timer(BEGINS, process.kill)
    late.start()
    try:
        for line in process.stdout or ():
            text = line.rstrip("\n")
            if text == _READY:
                return said
            if text.startswith(_FAILED):
                raise ConfigError(text.removeprefix(_FAILED))
            said.append(text)
    finally:
        late.cancel()
    raise ConfigError(
        f"the live page's process ended before it served {KEY}: its error is above; set monitor to "
        "false to run without the page"
    )


def _close(process: "subprocess.Popen[str]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(STAYS + ENDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
