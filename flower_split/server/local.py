"""The trunk in the silo's own process, for tests, notebooks and a first look."""

from flower_split.segments import Trunk
from flower_split.server.engine import TrunkEngine
from flower_split.transport.local import InProcessTransport
from flower_split.transport.messages import SessionSpec


class LocalTransport(InProcessTransport):
    """A session on a trunk in this process.

    Args:
        trunk: A trunk, which then stays frozen, or an engine that was made for it.
        spec: What the silo brings to the handshake; without it, what the engine expects.

    Raises:
        HandshakeError: `spec` differs from what the engine expects.
    """

    def __init__(self, trunk: Trunk | TrunkEngine, spec: SessionSpec | None = None) -> None:
        engine = trunk if isinstance(trunk, TrunkEngine) else TrunkEngine(trunk)
        super().__init__(engine, engine.describe() if spec is None else spec)
        self.limits = engine.limits
