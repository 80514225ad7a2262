"""The digest of a run's log: a line a round, what went wrong once, and none of the rest.

The log itself is Flower's: a level, a colon and a text, with further lines of the record below.
"""

import re
from collections.abc import Iterable, Iterator

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_RECORD = re.compile(r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)\s*:\s+(?P<text>.*)")
_STAMP = re.compile(r"^(\d{4}-\d\d-\d\d[T ][\d:.,]+\w*\s+)?")
_ROUND = re.compile(r"(round \d+ of \d+|before training): ")
_WORTH = (
    "waiting for silos",
    "and now every silo alone",
    "stopping after",
    "resuming",
    "the trunk listens on",
    "the run's live page: ",
)
"""How lines of level INFO begin that are shown."""
_NOISE = (
    "Since flwr",
    "Exit Code: ",
    "An exception occurred !!",
    "Simulation raised an exception",
    "ServerApp raised an exception",
    "ClientApp raised an exception",
)
"""How lines begin that say what the run's end says as well, or nothing about the run."""


def digest(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What is shown of a log: level and text of every line, each text once.

    Args:
        lines: As they come, with or without their ends.
    """
    seen, shown = set[str](), False
    for line in lines:
        plain = _STAMP.sub("", without_colours(line).rstrip())
        found = _RECORD.match(plain)
        if found is None:
            # Of what was shown, the list of reasons below it; tracebacks are indented by two.
            if shown and plain.startswith("- ") and plain not in seen:
                seen.add(plain)
                yield "", plain
            else:
                shown = False
            continue
        text = found["text"].strip()
        shown = _is_shown(found["level"], text) and text not in seen
        if shown:
            seen.add(text)
            yield found["level"], text


def without_colours(line: str) -> str:
    """`line` without what a terminal makes colours of."""
    return _COLOURS.sub("", line)


def last_round(lines: Iterable[str]) -> str:
    """The line of the last round that has ended; empty before the first."""
    return next((text for _, text in reversed([*digest(lines)]) if _ROUND.match(text)), "")


def _is_shown(level: str, text: str) -> bool:
    if level in ("WARNING", "ERROR", "CRITICAL"):
        return bool(text) and not text.startswith((*_NOISE, "Traceback"))
    return level == "INFO" and (bool(_ROUND.match(text)) or text.startswith(_WORTH))
