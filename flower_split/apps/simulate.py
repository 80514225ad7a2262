"""Run a Flower app in a simulation of its own, from start to end, and leave nothing behind.

::

    python -m flower_split.apps.simulate examples/quickstart --output-dir outputs/quickstart

Like `flwr run`, with these differences: the number of silos is an argument, the command waits for
the end of the run, prints a summary of its result, and fails when the run failed.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from flower_split.apps.local_superlink import CONNECTION, LocalSuperLink, LocalSuperLinkError
from flower_split.errors import FlowerSplitError
from flower_split.private_files import make_folder
from flower_split.reporting import print_summary, read_result

COMPLETED = "finished:completed"
RESULT = "result.json"


def simulate(
    app: Path,
    *,
    silos: int = 3,
    output_dir: Path | None = None,
    run_config: Sequence[str] = (),
    gpus: float = 0.0,
) -> None:
    """Run the Flower app in folder `app` with `silos` SuperNodes and wait for its end.

    The log goes to standard output. As many silos compute at once as there are cores.

    Args:
        app: Folder with the app's `pyproject.toml`.
        silos: Simulated SuperNodes.
        output_dir: Value of the run-config key `output-dir`, made if missing; None keeps the
            app's own.
        run_config: Further settings, each as `flwr run -c` takes them: `key=value key=value`.
        gpus: Share of a GPU that a silo gets.

    Raises:
        LocalSuperLinkError: the app could not be started, or its run did not complete.
    """
    settings = list(run_config)
    if output_dir is not None:
        # The server runs in another process, so it gets an absolute path.
        settings.append(f"output-dir={_quoted(str(_made(output_dir)))}")
    cores = min(silos, os.cpu_count() or 1)
    federation = (
        f"num-supernodes={silos} client-resources-num-cpus=1 init-args-num-cpus={cores} "
        f"client-resources-num-gpus={gpus}"
    )
    with LocalSuperLink() as superlink:
        submit = ["run", str(app), CONNECTION, "--federation-config", federation]
        # In one argument, because of two that name the same section Flower takes the last only.
        submit += ["-c", " ".join(settings)] if settings else []
        run_id = str(superlink.flwr_json(*submit)["run-id"])
        superlink.flwr("log", run_id, CONNECTION, "--stream").wait()
        status, details = _final_status(superlink, run_id)
    if status != COMPLETED:
        raise LocalSuperLinkError(
            f"the run ended as {status}" + (f": {details}" if details else "")
        )


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
    signal.signal(signal.SIGTERM, _interrupted)
    started = time.time()
    try:
        simulate(
            parsed.app,
            silos=parsed.silos,
            output_dir=parsed.output_dir,
            run_config=parsed.run_config,
            gpus=parsed.gpus,
        )
        if parsed.output_dir is not None:
            _summarise(parsed.output_dir, since=started)
    except FlowerSplitError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; everything was stopped", file=sys.stderr)
        return 130
    return 0


def _summarise(folder: Path, *, since: float) -> None:
    """Print what the run left in `folder`; nothing if that is from before `since`."""
    path = folder / RESULT
    if path.is_file() and path.stat().st_mtime >= since:
        print_summary(read_result(path))
        print(f"saved in {folder}")


def _final_status(superlink: LocalSuperLink, run_id: str) -> tuple[str, str]:
    """Status and details of the run, once it has ended.

    The log can end before the run does, when its stream breaks.
    """
    while True:
        listed = superlink.flwr_json("list", CONNECTION, "--run-id", run_id)["runs"][0]
        status = str(listed["status"])
        if status.startswith("finished"):
            return status, str(listed.get("status-details") or "")
        time.sleep(1.0)


def _made(folder: Path) -> Path:
    try:
        return make_folder(folder)
    except OSError as error:
        raise LocalSuperLinkError(
            f"the output folder {folder} cannot be made: {error.strerror}"
        ) from error


def _quoted(value: str) -> str:
    for quote in ('"', "'"):
        if quote not in value and (quote == "'" or "\\" not in value):
            return f"{quote}{value}{quote}"
    raise LocalSuperLinkError(f"a path with both kinds of quotes cannot be passed on: {value}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _interrupted(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
