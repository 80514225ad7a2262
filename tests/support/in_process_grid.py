"""The in-process grid of the package, with messages that are kept, dropped and tampered with."""

from flower_split.apps import in_process
from flower_split.apps.in_process import FIRST_NODE, RUN_ID, over_the_wire

__all__ = ["FIRST_NODE", "RUN_ID", "InProcessGrid", "over_the_wire"]


class InProcessGrid(in_process.InProcessGrid):
    """As the package's; `sent` has every message that was sent.

    Args:
        drop: Node ids whose messages get no reply.
        tamper: Called with every reply; returns the replies that arrive in its place.
    """

    def __init__(self, client_app, num_nodes=3, *, drop=(), tamper=None, **arguments):
        super().__init__(client_app, num_nodes, **arguments)
        self.drop = set(drop)
        self.tamper = tamper or super().replies
        self.sent = []

    def push_messages(self, messages):
        messages = list(messages)
        self.sent += messages
        return super().push_messages(messages)

    def reaches(self, message):
        return message.metadata.dst_node_id not in self.drop

    def replies(self, reply):
        return self.tamper(reply)
