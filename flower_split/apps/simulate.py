"""Run a Flower app in a simulation of its own, from start to end, and leave nothing behind.

::

    python -m flower_split.apps.simulate examples/quickstart --output-dir outputs/quickstart

Like `flwr run`, with these differences: the number of silos is an argument, the command waits for
the end of the run, prints a line a round and a summary, and fails when the run failed.
`flower-split run` checks the app first, and is otherwise the same.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from flower_split.apps.debugging import debugging
from flower_split.apps.flower.flwr_command import flwr_json
from flower_split.apps.flower.local_superlink import (
    CONNECTION,
    RAY_ADDRESS,
    LocalSuperLink,
    LocalSuperLinkError,
)
from flower_split.apps.flower.log_digest import digest, without_colours
from flower_split.apps.folder.app import App
from flower_split.apps.folder.archive import check_archive
from flower_split.apps.folder.overrides import Settings, rendered
from flower_split.config.trunk import RAY
from flower_split.errors import FlowerSplitError
from flower_split.private_files import make_folder
from flower_split.reporting import print_summary, read_result

COMPLETED = "finished:completed"
RESULT, LOG = "result.json", "run.log"
OUTPUT_KEY = "output-dir"
FAILED_WITH = ("Simulation failed with exception: ", "ServerApp failed with exception: ")
"""What Flower puts in front of the text of the error that ended a run."""

Shown = Callable[[str, str], None]
"""Shows a line of the log, given its level."""


def simulate(
    app: Path,
    *,
    silos: int = 3,
    output_dir: Path | None = None,
    run_config: Sequence[str] = (),
    gpus: float = 0.0,
    show: Shown | None = None,
) -> None:
    """Run the Flower app in folder `app` with `silos` SuperNodes and wait for its end.

    As many silos compute at once as there are cores.

    Args:
        app: Folder with the app's `pyproject.toml`.
        silos: Simulated SuperNodes.
        output_dir: Value of the run-config key `output-dir`, made if missing; gets the run's whole
            log too. None keeps the app's own.
        run_config: Further settings, each as `flwr run -c` takes them: `key=value key=value`.
        gpus: Share of a GPU that a silo gets.
        show: Shows what is told of the run while it goes; None prints it. With
            `FLOWER_SPLIT_DEBUG` it is every line of the log.

    Raises:
        ConfigError: the app or `run_config` is nothing that Flower accepts, the app has no key that
            is set, or data lies where it would leave the machine with the app.
        FlwrError: Ray is not installed, the app could not be started, or its run did not complete.
    """
    check_simulation()
    read = App.read(app, run_config)
    check_archive(app)
    settings = dict(read.overrides)
    if output_dir is not None:
        # The server runs in another process, so it gets an absolute path.
        settings[OUTPUT_KEY] = str(_made(output_dir))
    if os.environ.get(RAY_ADDRESS) and read.settings.get("trunk.engine") == RAY:
        text = f"{RAY_ADDRESS} is left aside: a simulation's trunk is on the silos' own Ray cluster"
        (show or show_plainly)("WARNING", text)
    cores = min(silos, os.cpu_count() or 1)
    federation = (
        f"num-supernodes={silos} client-resources-num-cpus=1 init-args-num-cpus={cores} "
        f"client-resources-num-gpus={gpus}"
    )
    with LocalSuperLink() as superlink, _log_file(output_dir) as log:
        submit = ["run", str(app), CONNECTION, "--federation-config", federation]
        run_id = str(superlink.flwr_json(*submit, *as_option(settings))["run-id"])
        with superlink.flwr("log", run_id, CONNECTION, "--stream") as stream:
            show_log(_copied(stream.stdout or (), log), show or show_plainly)
        status, details = final_status(superlink.environment, run_id, CONNECTION)
    check_completed(status, details)


def as_option(settings: Settings) -> list[str]:
    """The option of `flwr run` that sets `settings`; none where there are none.

    One argument, because of two that name the same section Flower takes the last only.
    """
    return ["-c", rendered(settings)] if settings else []


def show_log(lines: Iterator[str], show: Shown) -> None:
    """Show a run's log as its lines come: what matters of it, or all of it where that is wanted."""
    if debugging():
        for line in lines:
            show("DEBUG", line.rstrip())
    else:
        for level, text in digest(lines):
            show(level, text)


def show_plainly(level: str, text: str) -> None:
    """Print a line of the log at once, with its level where something is wrong."""
    is_told = level in ("", "INFO", "DEBUG")
    print(text if is_told else f"{level.lower()}: {text}", flush=True)


def final_status(environment: dict[str, str], run_id: str, *connection: str) -> tuple[str, str]:
    """Status and details of the run, once it has ended.

    The log can end before the run does, when its stream breaks.

    Raises:
        FlwrError: the SuperLink cannot be asked.
    """
    while True:
        listed = flwr_json(environment, "list", *connection, "--run-id", run_id)["runs"][0]
        status = str(listed["status"])
        if status.startswith("finished"):
            return status, str(listed.get("status-details") or "")
        time.sleep(1.0)


def check_completed(status: str, details: str) -> None:
    """Raise `LocalSuperLinkError` with the reason unless a run's status is that it completed."""
    if status == COMPLETED:
        return
    for words in FAILED_WITH:
        details = details.removeprefix(words)
    raise LocalSuperLinkError(f"the run ended as {status}" + (f": {details}" if details else ""))


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m flower_split.apps.simulate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("app", type=Path, help="folder with the app's pyproject.toml")
    parser.add_argument("--silos", type=_positive, default=3, help="simulated silos (default 3)")
    parser.add_argument("--output-dir", type=Path, help="folder for the run's results")
    parser.add_argument("--gpus", type=float, default=0.0, help="share of a GPU for each silo")
    parser.add_argument(
        "-c",
        "--run-config",
        action="append",
        default=[],
        metavar="'KEY=VALUE …'",
        help="settings that replace the app's, as for flwr run; can be repeated",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parsed = make_parser().parse_args(arguments)
    started = time.time()
    try:
        with interruptible():
            simulate(
                parsed.app,
                silos=parsed.silos,
                output_dir=parsed.output_dir,
                run_config=parsed.run_config,
                gpus=parsed.gpus,
            )
        if parsed.output_dir is not None:
            tell_result(parsed.output_dir, since=started)
    except FlowerSplitError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; everything was stopped", file=sys.stderr)
        return 130
    return 0


@contextmanager
def interruptible() -> Iterator[None]:
    """A block that SIGTERM ends as Ctrl-C does, so that what it has started is stopped."""
    former = signal.signal(signal.SIGTERM, _interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def tell_result(folder: Path, *, since: float) -> None:
    """Print what the run left in `folder`, and where; nothing if that is from before `since`."""
    path = folder / RESULT
    if is_since(path, since):
        print_summary(read_result(path))
        left = sorted(one.name for one in folder.iterdir() if not one.name.startswith("."))
        print(f"left in {folder}: {', '.join(left)}")


_TICK = 0.02
"""Seconds by which a file's time is at most before the clock's, which it follows by ticks."""


def is_since(path: Path, since: float) -> bool:
    """Whether there is a file `path` that was written since then, in seconds of the epoch."""
    return path.is_file() and path.stat().st_mtime >= since - _TICK


def check_simulation() -> None:
    """Raise `LocalSuperLinkError` where Ray, on which Flower simulates silos, is missing."""
    if find_spec("ray") is None:
        raise LocalSuperLinkError(
            "simulated silos need Ray, which is not installed: pip install "
            "'flower-split[simulation]'. Without it, flower-split deployment local runs the same "
            "app with a process for every silo"
        )


def check_output(folder: Path) -> None:
    """Raise `LocalSuperLinkError` where `folder` cannot be made or written to; none is left."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    made = _made(folder)
    writable = os.access(made, os.W_OK | os.X_OK)
    for path in missing:
        with suppress(OSError):
            path.rmdir()
    if not writable:
        raise LocalSuperLinkError(
            f"the output folder {folder} is not writable by this user: choose another with "
            "--output-dir"
        )


@contextmanager
def _log_file(folder: Path | None) -> Iterator[TextIO | None]:
    """The file in `folder` that a run's whole log goes to."""
    if folder is None:
        yield None
        return
    with (folder / LOG).open("w", encoding="utf-8") as file:
        yield file


def _made(folder: Path) -> Path:
    try:
        return make_folder(folder)
    except OSError as error:
        raise LocalSuperLinkError(
            f"the output folder {folder} cannot be made: {error.strerror}; choose another with "
            "--output-dir"
        ) from error


def _copied(lines: Iterable[str], file: TextIO | None) -> Iterator[str]:
    for line in lines:
        if file is not None:
            file.write(without_colours(line))
        yield line


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _interrupted(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
