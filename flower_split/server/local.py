"""The trunk in the silo's own process, for tests, notebooks and a first look."""

from flower_split.segments import Trunk
from flower_split.server.engine import TrunkEngine
from flower_split.transport.local import InProcessTransport
from flower_split.transport.messages import SessionSpec, Ticket


class LocalTransport(InProcessTransport):
    """A session on a trunk in this process.

    Args:
        trunk: A trunk, which then stays frozen, or an engine that was made for it.
        spec: What the silo brings to the handshake; without it, what the engine expects.
        ticket: Of a session that the engine was prepared for, which starts from what it was given
            then and leaves what it has trained; without it, one that leaves nothing.

    Raises:
        HandshakeError: `spec` differs from what the engine expects.
        SequenceError: the ticket opened a session before.
    """

    def __init__(
        self,
        trunk: Trunk | TrunkEngine,
        spec: SessionSpec | None = None,
        ticket: Ticket | None = None,
    ) -> None:
        engine = trunk if isinstance(trunk, TrunkEngine) else TrunkEngine(trunk)
        super().__init__(engine, engine.describe() if spec is None else spec, ticket)
        self.limits = engine.limits
