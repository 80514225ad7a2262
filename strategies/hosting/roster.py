"""The roster: which node is which silo, and the silos in an order that stays the same.

Node ids are new in every run, and a silo's name comes with its first reply only. Where the order
of the silos matters before that, each is asked for its name once.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from random import getstate, seed, setstate
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flower_split.config.silo_order import silo_order
from flower_split.strategies.hosting.exchange import exchange
from flower_split.transport.invitation import QUESTION, SPLIT_RECORD, read_name

logger = logging.getLogger(__name__)

SECONDS = 60.0
"""Seconds after which a node that has not told its name is not waited for any more."""


class Roster:
    """The names of the nodes of one run, as far as they are known."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._asked: set[int] = set()

    @property
    def names(self) -> dict[int, str]:
        """Name of the silo by node id."""
        return dict(self._names)

    def nodes(self) -> dict[str, int]:
        """Node id by name of the silo, without the names that several nodes have."""
        held = list(self._names.values())
        return {name: node for node, name in self._names.items() if held.count(name) == 1}

    def note(self, node_id: int, name: str) -> None:
        """Note the name that a node's reply gives; an empty one is none."""
        if name:
            self._names[node_id] = name

    def ask(self, grid: Grid, node_ids: Iterable[int], timeout: float) -> None:
        """Ask the nodes whose names are not known; each is asked once.

        A ClientApp that does not answer such questions leaves its node without a name.
        """
        unknown = [n for n in node_ids if n not in self._names and n not in self._asked]
        if not unknown:
            return
        self._asked.update(unknown)
        content = RecordDict({SPLIT_RECORD: ConfigRecord({QUESTION: True})})
        messages = [
            Message(content=content, dst_node_id=node, message_type="query") for node in unknown
        ]
        for reply in exchange(grid, messages, min(timeout, SECONDS)):
            if not reply.has_error():
                fields = reply.content.config_records.get(SPLIT_RECORD, ConfigRecord())
                self.note(reply.metadata.src_node_id, read_name(fields))
        nameless = len([node for node in unknown if node not in self._names])
        if nameless:
            logger.warning(
                "%d of %d silos did not tell their names before the first round; which silos are "
                "asked in a round cannot be repeated from the seed then",
                nameless,
                len(unknown),
            )


class OrderedGrid(Grid):
    """Another grid, whose nodes come in the order of their silos' names.

    Flower draws the silos of a round out of the list of nodes: the same draw out of the same order
    is the same silos.
    """

    def __init__(self, grid: Grid, names: dict[int, str]) -> None:
        self._grid = grid
        self._names = names

    def get_node_ids(self) -> Iterable[int]:
        """Node ids, those with a name first and in the order of `silo_order`."""
        return sorted(self._grid.get_node_ids(), key=self._rank)

    def _rank(self, node_id: int) -> tuple[bool, tuple[bool, int, str], int]:
        name = self._names.get(node_id, "")
        return not name, silo_order(name), node_id

    def set_run(self, run: Any) -> None:
        """Choose the run of the other grid; all that follows is passed on to it too."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """The run that messages belong to."""
        return self._grid.run

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        """A message of the other grid."""
        return self._grid.create_message(*arguments, **named)

    def get_nodes(self) -> Any:
        """The other grid's records of the nodes."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages through the other grid; returns their ids."""
        return self._grid.push_messages(messages)

    def pull_messages(self, *arguments: Any, **named: Any) -> Iterable[Message]:
        """The replies that have come; arguments are those of the other grid's Flower version."""
        return self._grid.pull_messages(*arguments, **named)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages through the other grid and wait for the replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)


@contextmanager
def drawn_from(number: int) -> Iterator[None]:
    """Python's global generator, out of which Flower draws silos, begun from `number`.

    Afterwards it continues as if nothing had been drawn. Noise comes from numpy's, which is never
    begun from anything that silos know.
    """
    state = getstate()
    seed(number)
    try:
        yield
    finally:
        setstate(state)
