"""What commands print: findings, a run's progress, errors once, and JSON for programs."""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from flower_split.apps.debugging import DEBUG, debugging
from flower_split.errors import ConfigError, FlowerSplitError, UsageError

if TYPE_CHECKING:
    from flower_split.apps.checking.findings import Findings

NOT_DONE, CALLED_WRONGLY, INTERRUPTED = 1, 2, 130
"""Statuses of a command that did not do what it was called for."""
STOPPED = "everything was stopped"
GOES_ON = "the run goes on; flower-split stop ends it"
STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}
NOISY = ("transformers", "flower_split", "flwr", "torch", "torchao", "bitsandbytes")
"""Loggers of what a command imports."""
LEVELS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


def console() -> Console:
    """Standard output, on which no line is broken and no number coloured."""
    return Console(highlight=False, soft_wrap=True)


@contextmanager
def errors_once(
    *,
    debug: bool = False,
    as_json: bool = False,
    interrupted: str = STOPPED,
    run_config: Sequence[str] | None = None,
) -> Iterator[None]:
    """A block whose errors end the command with one message on standard error.

    The status is `CALLED_WRONGLY` where the command line cannot be followed, as that of typer is,
    and `NOT_DONE` after any other error.

    Args:
        debug: Whether tracebacks are shown, here and in every process that the block starts.
        as_json: Whether the message is the answer to a program, on standard output, instead.
        interrupted: What is so after Ctrl-C.
        run_config: Overrides of `-c`, which are read before anything else.
    """
    former, levels = os.environ.get(DEBUG, ""), {n: logging.getLogger(n).level for n in NOISY}
    if debug:
        os.environ[DEBUG] = "1"
    try:
        if run_config:
            from flower_split.apps.folder.overrides import parse_overrides

            parse_overrides(run_config)
        yield
    except FlowerSplitError as error:
        if debugging():
            traceback.print_exc()
        said = "\n".join([str(error), *getattr(error, "__notes__", ())])
        if as_json:
            print_json({"ok": False, "error": said})
        elif not debugging():
            print(f"error: {said}", file=sys.stderr)
        wrongly = isinstance(error, UsageError)
        raise typer.Exit(CALLED_WRONGLY if wrongly else NOT_DONE) from None
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    finally:  # for who calls commands in a process of their own
        os.environ[DEBUG] = former
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def usage() -> Iterator[None]:
    """A block that reads options: what is wrong with them is how the command was called."""
    try:
        yield
    except ConfigError as error:
        raise UsageError(str(error)) from error


def quiet_libraries() -> None:
    """Keep what libraries and this package log out of a command's own output.

    To be called before they are imported: some log while they are.
    """
    import torch  # noqa: F401  # which sets levels of its own as it is imported

    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def print_findings(findings: "Findings", *, all_of_them: bool = True) -> None:
    """Print every finding, or only what is wrong; then the examples."""
    out = console()
    for one in findings.all:
        if not all_of_them and one.kind == "ok":
            continue
        mark = f"[{STYLES[one.kind]}]{one.kind:<8}[/]"
        out.print(f"{mark} [bold]{one.topic}[/]: {escape(one.text)}")
    for number, example in enumerate(findings.examples, start=1):
        out.print(Text(f"example {number}: {example}"))


def print_json(content: Mapping[str, Any]) -> None:
    """Print an answer for a program, and nothing else on standard output."""
    print(json.dumps(content, indent=2))


def shown_once(findings: "Findings") -> Callable[[str, str], None]:
    """`show_line` for a run that a check went before: what the check has said is not said again."""
    told = {one.text for one in findings.all if one.kind != "ok"}

    def show(level: str, text: str) -> None:
        if text not in told:
            show_line(level, text)

    return show


def show_line(level: str, text: str) -> None:
    """Print a line of a run's log as it comes."""
    line = Text(text if level not in LEVELS else f"{level.lower()}: {text}")
    line.stylize(LEVELS.get(level, ""))
    console().print(line)
    sys.stdout.flush()
