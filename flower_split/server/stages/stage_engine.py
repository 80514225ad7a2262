"""The engine of one stage: a part of a trunk's layers, on one device, wherever that is."""

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager

from torch import Tensor

from flower_split.devices import mark_ready, to_device
from flower_split.segments import Trunk, find_layers
from flower_split.segments.randomness import DRAWING
from flower_split.server.border import TrunkBorder
from flower_split.server.engine import TrunkEngine
from flower_split.server.handshake import check_prefix
from flower_split.server.key_shapes import key_shape
from flower_split.server.session_states import SiloState
from flower_split.server.stages.engine_settings import EngineSettings
from flower_split.server.stages.messages import StageOpening
from flower_split.server.stages.staged_session import StagedSession
from flower_split.server.ticket_record import TicketRecord
from flower_split.transport.messages import ForwardRequest


class StageEngine(TrunkEngine):
    """`TrunkEngine` of some of a trunk's layers.

    It checks shapes and bounds as any engine does. Who the silo is, and on which terms it comes,
    the chain has found out: a stage is told.

    Args:
        trunk: The stage's layers.
        settings: Of the whole trunk, or of the stage already.
        is_last: Whether it holds the trunk's last layer.
        turns: As for `TrunkEngine`.

    Raises:
        AdapterError: as `TrunkEngine`.
    """

    def __init__(
        self,
        trunk: Trunk,
        settings: EngineSettings,
        *,
        is_last: bool,
        turns: AbstractContextManager[object] | None = None,
    ) -> None:
        path, layers = find_layers(trunk.model)[0], trunk.cuts.trunk_range
        trunk.is_followed = not is_last
        # h2 has the dtype of the weights, whatever the layers before are given under autocast.
        trunk.leaves_in = trunk.dtype if is_last else None
        super().__init__(trunk, **vars(settings.of_stage(layers, path)), turns=turns)
        self.layers = layers
        """Their indices."""

    def open_stage(self, opening: StageOpening) -> Future[StagedSession]:
        """The stage's part of a session.

        The future fails with a `HandshakeError` where the layers take no such prefix, and with an
        `AdapterError` where what the session starts from does not fit them.
        """
        return self.queue.call(lambda: self._open_stage(opening))

    def key_width(self) -> Future[int]:
        """W of the keys that the layers keep, over all heads; 0 where they take no prefix."""
        return self.queue.call(self._key_width)

    def check_states(self, states: Sequence[SiloState]) -> None:
        """Raise `StateError` where one of `states` is not of this stage's adapters."""
        with self.queue.exclusive():
            for state in states:
                self._optimizers.check(state)

    def _open_stage(self, opening: StageOpening) -> StagedSession:
        spec = opening.spec
        width = check_prefix(spec, self.trunk, self.limits) if spec.prefix_tokens else 0
        record = TicketRecord(opening.start)
        with DRAWING:  # PEFT draws what a new adapter begins with, before it is overwritten
            work = self._begin(
                spec, opening.ticket, record, opening.start, opening.scaling, opening.resumed
            )
        return StagedSession(
            self.trunk,
            spec,
            StageBorder(self.trunk, spec),
            work.slot,
            self.limits,
            self.queue,
            record=record,
            follows_autocast=self._follows_autocast,
            prefix_width=width,
        )

    def _key_width(self) -> int:
        try:
            heads, size = key_shape(self.trunk)
        except ValueError:
            return 0
        return heads * size


class StageBorder(TrunkBorder):
    """Moves tensors between devices, and leaves them as the layers before have made them."""

    def incoming(self, hop: str, tensor: Tensor, microbatch: ForwardRequest) -> Tensor:
        """`tensor` on the stage's device."""
        return to_device(tensor, self._device)

    def outgoing(self, hop: str, tensor: Tensor, microbatch: ForwardRequest) -> Tensor:
        """`tensor`, detached."""
        return mark_ready(tensor.detach())
