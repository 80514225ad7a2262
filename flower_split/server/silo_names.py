"""The silos' names: each is one node's, as long as that node is connected."""

import logging
import threading
from collections.abc import Collection

from flower_split.errors import HandshakeError

logger = logging.getLogger(__name__)


class SiloNames:
    """Which node has which name. What is kept from round to round is kept by name.

    A node that starts again comes back under another node id and takes its name over, but never
    from a node that is still there. The methods may be called from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodes: dict[str, int] = {}
        self._connected: Collection[int] | None = None

    def note_connected(self, node_ids: Collection[int]) -> None:
        """The nodes that are connected now; every name is taken for good until this is known."""
        with self._lock:
            self._connected = frozenset(node_ids)

    def claim(self, name: str, node_id: int) -> str:
        """Give `name` to the node; returns the name that it had before, if that was another.

        Raises:
            HandshakeError: another node that is connected has it.
        """
        with self._lock:
            holder = self._nodes.get(name, node_id)
            if holder != node_id and (self._connected is None or holder in self._connected):
                raise HandshakeError(
                    f"silo: another node of this run is named {name!r} too. Give every SuperNode a "
                    "name of its own: `silo` in its node config"
                )
            if holder != node_id:
                logger.warning("silo %r has started again, and is another node now", name)
            former = next((held for held, node in self._nodes.items() if node == node_id), "")
            if former == name:
                return ""
            self._nodes.pop(former, None)
            self._nodes[name] = node_id
            return former
