"""A Flower grid in one process: runs a real ClientApp in threads, with real serialisation."""

from concurrent.futures import ThreadPoolExecutor

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

FIRST_NODE = 100
RUN_ID = 7


def over_the_wire(message):
    """What the receiver of `message` gets: serialised and read back."""
    message_id = message.metadata.message_id
    objects = get_all_nested_objects(message)
    root = message.object_id
    copy = inflate_object_from_contents(root, {k: v.deflate() for k, v in objects.items()})
    copy.metadata.__dict__["_message_id"] = message_id or root
    return copy


class InProcessGrid(Grid):
    """`num_nodes` nodes, each with its own context; `order` is the order in which they are listed.

    Args:
        client_app: Called once a message.
        num_nodes: Nodes, with partition ids 0, 1, …
        run_config: Every node's run config.
        node_config: Added to the partition id of every node.
        threads: Nodes that compute at once.
        drop: Node ids whose messages get no reply.
        tamper: Called with every reply; returns the replies that arrive in its place.
        node_ids: Their ids; None counts from `FIRST_NODE`.
    """

    def __init__(
        self,
        client_app,
        num_nodes=3,
        *,
        run_config=None,
        node_config=None,
        threads=1,
        drop=(),
        tamper=None,
        node_ids=None,
    ):
        TaskIdentity.task_id, TaskIdentity.run_id = 1, RUN_ID
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        self.client_app = client_app
        self.threads = threads
        self.drop = set(drop)
        self.tamper = tamper or (lambda reply: [reply])
        self.sent = []
        self.contexts = {
            node_id: Context(
                RUN_ID,
                node_id,
                {"partition-id": i, "num-partitions": num_nodes, **(node_config or {})},
                RecordDict(),
                dict(run_config or {}),
            )
            for i, node_id in enumerate(node_ids or range(FIRST_NODE, FIRST_NODE + num_nodes))
        }
        self.order = list(self.contexts)
        self._replies = {}

    def set_run(self, run):
        self._run = run

    @property
    def run(self):
        return self._run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return self.order

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
        self.sent += messages
        wanted = [m for m in messages if m.metadata.dst_node_id not in self.drop]
        with ThreadPoolExecutor(max(1, self.threads)) as pool:
            for message, reply in zip(wanted, pool.map(self._answer, wanted), strict=True):
                self._replies[message.metadata.message_id] = [
                    over_the_wire(sent) for sent in self.tamper(reply)
                ]
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids):
        return [reply for i in list(message_ids) for reply in self._replies.pop(i, [])]

    def send_and_receive(self, messages, *, timeout=None):
        replies = self.pull_messages(self.push_messages(messages))
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def _answer(self, message):
        arrived = over_the_wire(message)
        context = self.contexts[arrived.metadata.dst_node_id]
        try:
            return self.client_app(arrived, context)
        except Exception as error:
            reason = f"{type(error)}:<'{error}'>"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=arrived)
