"""`InProcessGrid`: a federation in one process, for experiments and tests that need no other.

A ClientApp answers every message as it would in a deployment, also through a trunk that
`SplitStrategy` hosts; messages are serialised on their way. There is no SuperLink, and nothing to
start or to stop::

    grid = InProcessGrid(client_app, 3, run_config=run_config)
    result = SplitStrategy(SplitConfig.from_run_config(run_config), inner=FedAvg()).start(grid)
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

FIRST_NODE = 100
"""Id of the first node."""
RUN_ID = 7


class InProcessGrid(Grid):
    """`num_nodes` nodes, each with a context of its own, that compute in threads of this process.

    One process can have one at a time.

    Args:
        client_app: Called once a message.
        num_nodes: Nodes, with partition ids 0, 1, …
        run_config: Every node's run config.
        node_config: Further keys of every node's config; or one such mapping a node.
        threads: Nodes that compute at once. With one, they compute in the order of the messages,
            and a barrier between silos would never be passed. Passes of `session.train()` and
            `session.accumulate()` draw dropout of their own; a loop of one's own that calls the
            model itself draws with several threads what the others leave.
        node_ids: Their ids; None counts from `FIRST_NODE`.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int = 3,
        *,
        run_config: Mapping[str, Any] | None = None,
        node_config: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        threads: int = 1,
        node_ids: Iterable[int] | None = None,
    ) -> None:
        # Flower makes messages only where it knows whose process it is.
        TaskIdentity.task_id, TaskIdentity.run_id = 1, RUN_ID
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        self.client_app = client_app
        self.threads = threads
        if isinstance(node_config, Mapping) or node_config is None:
            node_config = [node_config or {}] * num_nodes
        if len(node_config) != num_nodes:
            raise ValueError(f"there are {num_nodes} nodes and {len(node_config)} node configs")
        ids = list(node_ids or range(FIRST_NODE, FIRST_NODE + num_nodes))
        self.contexts = {
            node_id: Context(
                RUN_ID,
                node_id,
                {"partition-id": number, "num-partitions": num_nodes, **node_config[number]},
                RecordDict(),
                dict(run_config or {}),
            )
            for number, node_id in enumerate(ids)
        }
        self.order = ids
        """The order in which the nodes are listed."""
        self._run: Run | None = None
        self._replies: dict[str, list[Message]] = {}

    def set_run(self, run: Run) -> None:
        """Flower's; `run` is what it was set to."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's record of the run, where one was set."""
        if self._run is None:
            raise AttributeError("no run was set")
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The ids of all nodes, in `order`."""
        return self.order

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Have all `messages` answered; returns when they are."""
        messages = list(messages)
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
        wanted = [message for message in messages if self.reaches(message)]
        with ThreadPoolExecutor(max(1, self.threads)) as pool:
            for message, reply in zip(wanted, pool.map(self._answer, wanted), strict=True):
                self._replies[message.metadata.message_id] = [
                    over_the_wire(sent) for sent in self.replies(reply)
                ]
        return [message.metadata.message_id for message in messages]

    # The parameters are those of Flower 1.43, and take every call that up to 1.42 is allowed.
    def pull_messages(  # type: ignore[override]
        self,
        reply_to_message_ids: Iterable[str] | None = None,
        *,
        message_ids: Iterable[str] | None = None,
    ) -> list[Message]:
        """The replies to those messages, each once; without ids all replies.

        `message_ids` is the name that the ids have up to Flower 1.42.
        """
        if reply_to_message_ids is not None and message_ids is not None:
            raise TypeError("ids were given twice: pass reply_to_message_ids or message_ids")
        wanted = message_ids if reply_to_message_ids is None else reply_to_message_ids
        ids = list(self._replies if wanted is None else wanted)
        return [reply for i in ids for reply in self._replies.pop(i, [])]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """The replies to `messages`, in the order of the nodes' ids."""
        replies = self.pull_messages(self.push_messages(messages))
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def reaches(self, message: Message) -> bool:
        """Whether a message arrives; for subclasses."""
        return True

    def replies(self, reply: Message) -> list[Message]:
        """What arrives of a node's reply; for subclasses."""
        return [reply]

    def _answer(self, message: Message) -> Message:
        arrived = over_the_wire(message)
        context = self.contexts[arrived.metadata.dst_node_id]
        try:
            return self.client_app(arrived, context)
        except Exception as error:
            reason = f"{type(error)}:<'{error}'>"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=arrived)


def over_the_wire(message: Message) -> Message:
    """What the receiver of `message` gets: serialised and read back."""
    message_id = message.metadata.message_id
    root = message.object_id
    copy = inflate_object_from_contents(root, _serialised(message))
    if not isinstance(copy, Message):
        raise TypeError(f"a message came back as {type(copy).__name__}")
    copy.metadata.__dict__["_message_id"] = message_id or root
    return copy


def message_bytes(message: Message) -> int:
    """Bytes of `message` as Flower serialises it."""
    return sum(map(len, _serialised(message).values()))


def _serialised(message: Message) -> dict[str, bytes]:
    return {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
