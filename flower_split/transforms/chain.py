"""The chain: all transforms of one session at one of its ends, in their order."""

from collections.abc import Callable

import torch
from torch import Tensor

from flower_split.config.wire import HOPS
from flower_split.errors import ConfigError, HandshakeError, TransformError, TrunkError
from flower_split.transforms.placement import Placement
from flower_split.transforms.table import TRANSFORM_TABLE
from flower_split.transforms.transform import End, Transform, TransformContext
from flower_split.transport.messages import SessionSpec

Change = Callable[[str, Tensor, TransformContext], Tensor]


class TransformChain:
    """The transforms that the session's wire names, then dtype and device.

    What leaves passes them in this order, what arrives in the reverse one, so that each meets what
    its counterpart at the other end made.

    Args:
        spec: What both ends agreed on.
        end: The end at which they are applied.

    Raises:
        HandshakeError: a transform is of no use, or cannot be part of this session.
    """

    def __init__(self, spec: SessionSpec, end: End) -> None:
        self._end = end
        self._placement = Placement(spec, end)
        classes = [_find(name, end) for name in spec.wire.transforms]
        self.changes = frozenset(hop for kind in classes for hop in kind.hops)
        """The hops that a transform at either end changes."""
        transforms = [_make(kind, spec, end) for kind in classes if end in kind.ends]
        self._by_hop = {hop: [one for one in transforms if hop in one.hops] for hop in HOPS}

    def outgoing(self, hop: str, tensor: Tensor, context: TransformContext) -> Tensor:
        """What leaves of `tensor`, (B, T, H): detached, in the session's dtype.

        A prefix and its gradient pass no transform; a session with both is refused.

        Raises:
            TransformError: a transform failed.
        """
        tensor = tensor.detach()
        for one in self._by_hop.get(hop, ()):
            tensor = self._apply(one, one.outgoing, hop, tensor, context)
        return self._placement.outgoing(hop, tensor, context)

    def incoming(self, hop: str, tensor: Tensor, context: TransformContext) -> Tensor:
        """What enters of `tensor`, (B, T, H), in the session's dtype: where the end computes.

        Raises:
            WireError: it has another dtype.
            TransformError: a transform failed.
        """
        tensor = self._placement.incoming(hop, tensor, context)
        for one in reversed(self._by_hop.get(hop, ())):
            tensor = self._apply(one, one.incoming, hop, tensor, context)
        return tensor

    def _apply(
        self, one: Transform, change: Change, hop: str, tensor: Tensor, context: TransformContext
    ) -> Tensor:
        where = f"transform {one.name!r} at the {self._end}, for {hop}"
        try:
            with torch.no_grad():
                changed = change(hop, tensor, context)
        except (TrunkError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            # Its text may hold a user's values.
            raise TransformError(f"{where}, failed: {type(error).__name__}") from error
        found, expected = _look(changed), _look(tensor)
        if found != expected:
            raise TransformError(f"{where}, returned {found}, expected {expected}")
        return changed.detach()


def _find(name: str, end: End) -> type[Transform]:
    try:
        return TRANSFORM_TABLE[name]
    except KeyError:
        raise HandshakeError(f"wire.transforms: there is no {name!r} at the {end}") from None
    except ConfigError as error:
        raise HandshakeError(f"at the {end}, {error}") from error


def _make(kind: type[Transform], spec: SessionSpec, end: End) -> Transform:
    try:
        return kind(spec, end)
    except ConfigError as error:
        raise HandshakeError(
            f"wire.transforms: {kind.name!r} refuses the session at the {end}: {error}"
        ) from error
    except Exception as error:
        raise HandshakeError(
            f"wire.transforms: {kind.name!r} cannot be made at the {end}: {type(error).__name__}"
        ) from error


def _look(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{value.dtype} of shape {tuple(value.shape)} on {value.device}"
