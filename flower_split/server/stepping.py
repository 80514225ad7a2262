"""Optimizer steps on the trunk's adapters: a session's own, or the one that all sessions share.

A `federated` session steps its own adapter. A `shared` session computes with a replica of the
master adapter; its step applies its gradients to the master and refreshes the replica, as
split learning with a server-side model does (SplitFed V2, Thapa et al. 2022, arXiv:2004.12088).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from flower_split.adapters import AdapterRound, PersonalTensors, TrunkAdapters
from flower_split.adapters.adalora.rank_allocation import TrunkAllocator
from flower_split.adapters.state import with_adapter
from flower_split.adapters.trunk_adapters import MASTER
from flower_split.errors import SequenceError, WireError
from flower_split.optimization.clipping import global_norm
from flower_split.optimization.magnitude import check_magnitudes, largest_of
from flower_split.optimization.moments import check_moments, load_moments, read_moments
from flower_split.optimization.settings import OptimizerSettings
from flower_split.server.held_rows import HeldRows
from flower_split.transport.messages import AdapterUse

MOST_COPIES = 2
"""Of a session's adapter; a reference model and one more."""


def adamw(parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW with the constants that both parties agreed on."""
    return torch.optim.AdamW(
        parameters,
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


class Stepper:
    """AdamW on one named adapter."""

    def __init__(self, adapters: TrunkAdapters, name: str, settings: OptimizerSettings) -> None:
        self._named = adapters.named_parameters(name)
        self.parameters = list(self._named.values())
        self._optimizer = adamw(self.parameters, settings)

    def step(
        self,
        gradients: Sequence[Tensor | None],
        learning_rate: float,
        constants: OptimizerSettings,
    ) -> Callable[[], None]:
        """One step; a tensor without gradient is left as it is. What takes it back.

        Args:
            gradients: Of the adapter's tensors.
            learning_rate: Of this step.
            constants: AdamW's, of this step alone.

        Raises:
            WireError: the gradients may not have finite moments, or the result is beyond what the
                next step may begin with; nothing is changed.
        """
        check_magnitudes("the step's gradient", (g for g in gradients if g is not None))
        undo = self._undo()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
            group["betas"] = (constants.beta1, constants.beta2)
            group["eps"], group["weight_decay"] = constants.eps, constants.weight_decay
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        try:
            check_magnitudes("the stepped adapter", (p.detach() for p in self.parameters))
        except WireError:
            undo()
            raise
        return undo

    def _undo(self) -> Callable[[], None]:
        """Brings tensors and moments back to what they are now."""
        tensors = [parameter.detach().clone() for parameter in self.parameters]
        moments = {
            parameter: {part: value.clone() for part, value in held.items()}
            for parameter, held in self._optimizer.state.items()
        }

        def undo() -> None:
            with torch.no_grad():
                for parameter, tensor in zip(self.parameters, tensors, strict=True):
                    parameter.copy_(tensor)
            self._optimizer.state.clear()
            self._optimizer.state.update(moments)

        return undo

    def moments(self) -> dict[str, Tensor]:
        """CPU copies of the optimizer's state, named as in the uncut model."""
        return read_moments(self._optimizer, self._named)

    def check_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Raise `StateError` unless it can resume from `moments`."""
        check_moments(self._named, moments)

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Resume from `moments`.

        Raises:
            StateError: they are not the state of an optimizer of this adapter.
        """
        load_moments(self._optimizer, self._named, moments)


class AdapterSlot:
    """The adapter that one session computes with, its gradients, and who steps it.

    Args:
        adapters: All adapters of the trunk.
        name: The session's adapter, already made.
        stepper: The session's own stepper, or the master's.
        begun: What the strategy asks of the session's own adapter; None where it is a replica of
            the master, of which nothing is sent, personal or corrected.
    """

    def __init__(
        self,
        adapters: TrunkAdapters,
        name: str,
        stepper: Stepper,
        *,
        begun: AdapterRound | None,
    ) -> None:
        self._adapters = adapters
        self.name = name
        self._stepper = stepper
        self._begun = begun
        self._all = list(adapters.named_parameters(name).values())
        self._trained = adapters.trained(name)
        self._gradients: list[Tensor | None] = [None] * len(self._trained)
        self._copies: dict[str, str] = {}
        self._copied = 0
        self._allocator = adapters.rank_allocator(name)
        self.rows: HeldRows | None = None
        """Gradients by row, in a session whose examples are clipped."""

    @property
    def ranks(self) -> TrunkAllocator:
        """Allocates AdaLoRA's ranks.

        Raises:
            SequenceError: the adapter is of another method.
        """
        if self._allocator is None:
            raise SequenceError("this session's adapter has no ranks to allocate: no AdaLoRA")
        return self._allocator

    def orthogonality(self) -> Tensor | None:
        """AdaLoRA's term, a scalar that gradients flow to; None where the method is another."""
        return None if self._allocator is None else self._adapters.orthogonality(self.name)

    def update_ranks(self) -> None:
        """Have AdaLoRA's importances go on by the gradient of the last step, which was kept.

        Raises:
            AdapterError: there is none.
        """
        named = self._adapters.named_parameters(self.name)
        kept = {id(p): g for p, g in zip(self._trained, self._gradients, strict=True)}
        self.ranks.update({with_adapter(n): kept.get(id(p)) for n, p in named.items()})

    @property
    def can_mix(self) -> bool:
        """Whether rows of other sessions may be computed in one pass with this one's.

        Not where a second adapter lies beneath: a row has one adapter. Nor where gradients are told
        row by row.
        """
        mixes = self._adapters.mixer.possible and self.rows is None
        return mixes and not self._adapters.has_folded(self.name)

    @contextmanager
    def computing(self, use: AdapterUse) -> Iterator[None]:
        """Compute with this adapter, a copy of it or none meanwhile.

        Raises:
            SequenceError: there is no such copy.
        """
        if use.copy and use.copy not in self._copies:
            raise SequenceError(f"the session has made no copy {use.copy!r} of its adapter")
        if use.disabled:
            self._adapters.deactivate()
        else:
            self._adapters.activate(self._copies[use.copy] if use.copy else self.name)
        with self._adapters.scaled(use.scale):
            yield

    def copy(self, name: str) -> None:
        """Make a frozen copy of the adapter as it is now, for passes that name it.

        Raises:
            SequenceError: there are `MOST_COPIES` already, or another adapter lies beneath.
        """
        if name not in self._copies and len(self._copies) >= MOST_COPIES:
            raise SequenceError(f"a session may have {MOST_COPIES} copies of its adapter")
        if self._adapters.has_folded(self.name):
            raise SequenceError("an adapter with another one folded beneath it cannot be copied")
        held = self._copies.pop(name, None)
        if held is not None:
            self._adapters.remove(held)
        self._copied += 1
        copied = f"{self.name}-copy-{self._copied}"
        self._adapters.copy(self.name, copied)
        self._copies[name] = copied

    def free(self) -> None:
        """Delete the adapter and its copies."""
        if self.rows is not None:
            self.rows.close()
        for name in (*self._copies.values(), self.name):
            self._adapters.remove(name)
        self._copies.clear()

    def mixed(
        self, slots: Sequence["AdapterSlot"], counts: Sequence[int]
    ) -> AbstractContextManager[None]:
        """Compute a batch with so many rows of each slot, one slot after the other, for a while."""
        for slot in slots:
            slot.trainable()
        spans = [(slot.name, rows) for slot, rows in zip(slots, counts, strict=True)]
        return self._adapters.mixer.rows(spans)

    def trainable(self) -> list[nn.Parameter]:
        """Those of its tensors that are trained, ready to have gradients."""
        for parameter in self._trained:
            parameter.requires_grad_(True)
        return self._trained

    def accumulate(self, gradients: Sequence[Tensor | None]) -> None:
        """Add a microbatch's gradients, of the trained tensors, to those of the step."""
        for index, gradient in enumerate(gradients):
            total = self._gradients[index]
            if total is None or gradient is None:
                self._gradients[index] = gradient if total is None else total
            else:
                total.add_(gradient)

    def discard(self, *, zeros: bool) -> None:
        """Forget the gradients of the step so far; as zeros, or as if there had been none."""
        if self.rows is not None:
            self.rows.forget()
        if not zeros:
            self._gradients = [None] * len(self._trained)
        for gradient in self._gradients:
            if gradient is not None:
                gradient.zero_()

    def measure(self) -> tuple[float, float]:
        """2-norm of the gradient of the step so far, and the magnitude of its largest element."""
        norms, largest = self.measure_each()
        return float(global_norm(norms)), largest

    def measure_each(self) -> tuple[tuple[float, ...], float]:
        """2-norm of every tensor's gradient of the step so far, in model order and without those
        that have none, and the magnitude of the largest element of all."""
        held = [gradient for gradient in self._gradients if gradient is not None]
        if not held:
            return (), 0.0
        norms = torch.stack(torch._foreach_norm(held)).float()
        return tuple(norms.tolist()), largest_of(held)

    def of_all(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """A microbatch's gradients of all tensors, float32; zeros where there is none."""
        found = {id(p): g for p, g in zip(self._trained, gradients, strict=False)}
        held = [(p, found.get(id(p))) for p in self._all]
        return tuple((torch.zeros_like(p) if g is None else g).float() for p, g in held)

    def gather(self, scale: float = 1.0, clip: float = math.inf) -> list[nn.Parameter]:
        """The trained tensors with the step's corrected gradients as their `grad`: copies, so that
        the step may yet fail.

        Args:
            scale: By which the gradient of the step so far is multiplied.
            clip: Bound of its elements, once scaled.

        Raises:
            SequenceError: gradients by row were not weighed.
        """
        if self.rows is not None:
            self._gradients = [*self.rows.gradients()]
        for parameter, gradient in zip(self._trained, self._gradients, strict=True):
            parameter.grad = None if gradient is None else gradient * scale
            if parameter.grad is not None and not math.isinf(clip):
                parameter.grad.clamp_(-clip, clip)
        if self._begun is not None:
            self._begun.correct_gradients()
        return self._trained

    def take_back(self) -> None:
        """The step whose gradients were gathered last is not taken."""
        for parameter in self._all:
            parameter.grad = None
        if self._begun is not None:
            self._begun.take_back()

    def step(
        self,
        learning_rate: float,
        constants: OptimizerSettings,
        *,
        keeps_gradient: bool = False,
    ) -> Callable[[], None]:
        """Apply the gathered gradients, and forget them unless they are to be kept.

        Returns what takes the step back, so that it may be taken anew.

        Raises:
            WireError: see `Stepper.step`.
        """
        gradients = [parameter.grad for parameter in self._all]
        stepped, before = [parameter.grad for parameter in self._trained], self._gradients
        for parameter in self._all:
            parameter.grad = None
        undo = self._stepper.step(gradients, learning_rate, constants)
        self._gradients = stepped if keeps_gradient else [None] * len(self._trained)
        self._refresh()

        def take_back() -> None:
            undo()
            self._gradients = before
            self._refresh()
            self.take_back()

        return take_back

    def write(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite the adapter that is stepped.

        Raises:
            AdapterError: `state` does not fit the trunk.
        """
        self._adapters.load(MASTER if self.is_shared else self.name, state)
        self._refresh()

    def check_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Raise `StateError` unless the optimizer can go on from `moments`."""
        self._stepper.check_moments(moments)

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Have the optimizer go on from `moments`.

        Raises:
            StateError: they are not of an optimizer of this adapter.
        """
        self._stepper.load_moments(moments)

    def all_moments(self) -> dict[str, Tensor]:
        """CPU copies of the state of the optimizer that steps it, whoever else it steps."""
        return self._stepper.moments()

    @property
    def held(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name in the uncut model and shape of every tensor, in model order."""
        named = self._adapters.named_parameters(self.name)
        return tuple((name, tuple(parameter.shape)) for name, parameter in named.items())

    @property
    def is_shared(self) -> bool:
        """Whether it is a replica of the master."""
        return self._begun is None

    def _refresh(self) -> None:
        if self._begun is None:
            with torch.no_grad():
                for own, master in zip(self._all, self._stepper.parameters, strict=True):
                    own.copy_(master)

    def state(self) -> dict[str, Tensor]:
        """A float32 CPU copy of the adapter."""
        return self._adapters.state(self.name)

    def sent(self) -> dict[str, Tensor]:
        """What goes into the silo's reply, float32 on the CPU."""
        return {} if self._begun is None else self._begun.sent()

    def personal(self) -> PersonalTensors:
        """What belongs to the silo alone, as the session leaves it."""
        return PersonalTensors() if self._begun is None else self._begun.personal()

    def moments(self) -> dict[str, Tensor]:
        """CPU copies of the session's own optimizer state; none where it steps the master's."""
        return {} if self._begun is None else self._stepper.moments()
