"""Silos' names in the log, where a line has a node's number, as Flower's own lines do."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

LOGGERS = ("flwr", "flower_split")
"""Whose handlers print what happens in a run."""
_NODE = re.compile(r"\bnodes? (\d+(?:, \d+)*)\b")


class _Named(logging.Filter):
    """Rewrites `node 123…` of every line to the name of that node's silo, where it is known."""

    def __init__(self, names: Callable[[], Mapping[int, str]]) -> None:
        super().__init__()
        self._names = names

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the line; every line passes."""
        text = record.getMessage()
        if _NODE.search(text):
            names = self._names()
            record.msg, record.args = _NODE.sub(lambda found: _silo(found, names), text), None
        return True


@contextmanager
def silos_named(names: Callable[[], Mapping[int, str]]) -> Iterator[None]:
    """A block whose log lines call silos by their names.

    Args:
        names: The names that are known now, by node id.
    """
    named = _Named(names)
    handlers = {one for name in LOGGERS for one in logging.getLogger(name).handlers}
    for handler in handlers:
        handler.addFilter(named)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(named)


def _silo(found: re.Match[str], names: Mapping[int, str]) -> str:
    silos, nodes = list[str](), list[str]()
    for number in found[1].split(", "):
        name = names.get(int(number), "")
        known = bool(name) and name.isprintable()
        (silos if known else nodes).append(name if known else number)
    both = (("silo", silos), ("node", nodes))
    return " and ".join(f"{w}{'s' * (len(held) > 1)} {', '.join(held)}" for w, held in both if held)
