"""What a silo may have done with the trunk's part of its adapter, beside training it."""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from flower_split.adapters.adalora.rank_allocation import TrunkAllocator
from flower_split.errors import AdapterError, SequenceError, StateError, WireError
from flower_split.optimization.magnitude import check_magnitudes
from flower_split.server.snapshots import SnapshotStore
from flower_split.transport.messages import AdapterCall, AdapterReply, SessionLimits


class CalledAdapter(Protocol):
    """The adapter of a session; an `AdapterSlot` is one, which says what each of these does."""

    @property
    def held(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name in the uncut model and shape of every tensor, in model order."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether it is a replica of the master."""
        ...

    @property
    def ranks(self) -> TrunkAllocator:
        """Allocates AdaLoRA's ranks."""
        ...

    def update_ranks(self) -> None:
        """Have AdaLoRA's importances go on."""
        ...

    def state(self) -> dict[str, Tensor]:
        """A float32 CPU copy."""
        ...

    def write(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite the adapter that is stepped."""
        ...

    def copy(self, name: str) -> None:
        """Make a frozen copy."""
        ...

    def all_moments(self) -> dict[str, Tensor]:
        """CPU copies of the optimizer's state."""
        ...

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Have the optimizer go on from `moments`."""
        ...


class AdapterCalls:
    """Answers the adapter calls of one session, one at a time.

    Args:
        slot: The session's adapter.
        snapshots: Of all silos.
        limits: Of the session; they say whether the adapter may be read and written.
        silo: The silo's name, under which its snapshots are kept.
        is_alone: Whether no other session is open.
        trains: Whether the session is one of training.
    """

    def __init__(
        self,
        slot: CalledAdapter,
        snapshots: SnapshotStore,
        limits: SessionLimits,
        *,
        silo: str,
        is_alone: Callable[[], bool],
        trains: bool = True,
    ) -> None:
        self._slot = slot
        self._snapshots = snapshots
        self._limits = limits
        self._silo = silo
        self._is_alone = is_alone
        self._trains = trains

    def answer(self, call: AdapterCall) -> AdapterReply:
        """Do what `call` asks for.

        Raises:
            SequenceError: the trunk does not do that for this session; says why.
            WireError: tensors or a name do not fit.
        """
        slot = self._slot
        held = slot.held
        match call.action:
            case "read":
                self.check_shared()
                state = slot.state()
                return AdapterReply(held=held, tensors=tuple(state[name] for name, _ in held))
            case "write":
                self.check_shared()
                self._check_own("written")
                self._write(call)
            case "copy":
                slot.copy(call.name)
            case "snapshot":
                self._snapshots.put(self._silo, call.name, slot.state())
            case "snapshot_moments":
                self._snapshots.put(self._silo, call.name, slot.all_moments())
            case "restore":
                self._check_own("restored")
                kept = self._snapshots.get(self._silo, call.name)
                check_magnitudes("the snapshot", kept.values())
                try:
                    slot.write(kept)
                except AdapterError as error:
                    raise SequenceError(f"a snapshot of another adapter: {error}") from error
            case "restore_moments":
                self._check_own("restored")
                try:
                    slot.load_moments(self._snapshots.get(self._silo, call.name))
                except StateError as error:
                    raise SequenceError(f"a snapshot of another optimizer: {error}") from error
            case "list":
                pass
            case _:
                return self._of_ranks(call)
        return AdapterReply(held=held)

    def _of_ranks(self, call: AdapterCall) -> AdapterReply:
        """What AdaLoRA's allocator at the silo asks of the trunk's."""
        ranks = self._slot.ranks
        try:
            match call.action:
                case "ranks_update":
                    self._slot.update_ranks()
                case "ranks_scores":
                    return AdapterReply(scores=ranks.scores())
                case "ranks_mask":
                    if not math.isfinite(call.threshold):
                        raise WireError(f"a threshold of {call.threshold}, expected a number")
                    ranks.mask(call.threshold)
                case "ranks_mask_again":
                    return AdapterReply(kept=ranks.mask_again())
                case _:
                    ranks.reset()
        except AdapterError as error:
            raise SequenceError(str(error)) from error
        return AdapterReply()

    def check_shared(self) -> None:
        """Raise `SequenceError` unless the silo may read and write the trunk's adapter."""
        if not self._limits.max_adapter_elements:
            raise SequenceError(
                "this trunk does not give its part of the adapter to silos, nor takes it from "
                "them; its owner may: TrunkEngine(shares_adapter=True), trunk.shares-adapter"
            )

    def _check_own(self, done: str) -> None:
        if self._slot.is_shared and not self._trains:
            raise SequenceError(
                f"a shared trunk's adapter is not {done} by an evaluation session: open one of "
                "training"
            )
        if self._slot.is_shared and not self._is_alone():
            raise SequenceError(
                f"a shared trunk's adapter is {done} only while no other silo has a session"
            )

    def _write(self, call: AdapterCall) -> None:
        held = self._slot.held
        if len(call.tensors) != len(held):
            raise WireError(f"{len(call.tensors)} adapter tensors, expected {len(held)}")
        state = {}
        for (name, shape), tensor in zip(held, call.tensors, strict=True):
            if tensor.numel() != math.prod(shape):
                raise WireError(f"{name}: {tuple(tensor.shape)}, expected {shape}")
            state[name] = tensor.reshape(shape)
        check_magnitudes("the adapter that was sent", state.values())
        try:
            self._slot.write(state)
        except AdapterError as error:
            raise WireError(str(error)) from error
