"""One silo's session on the trunk: activations, caches, gradients and optimizer steps.

Axes: B rows of a microbatch, T new tokens a row, S tokens with the cached ones, H hidden size.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from flower_split.errors import SequenceError, TrunkBusyError, WireError
from flower_split.optimization.clipping import (
    checked_norms,
    clip_by_global_norm,
    gradient_norms,
)
from flower_split.segments import Trunk
from flower_split.server.border import Border
from flower_split.server.caches import CacheShelf
from flower_split.server.stepping import AdapterSlot
from flower_split.transport.limits import SessionLimits
from flower_split.transport.messages import (
    BackwardRequest,
    ForwardRequest,
    SessionSpec,
    SessionSummary,
    StepReply,
    StepRequest,
)


class TrunkSession:
    """`BackendSession` on a trunk that several sessions share.

    A session's gradients are kept apart from every other's until its own optimizer step. All
    sessions of a trunk share `lock`, so that calls from several threads compute one at a time.

    Args:
        trunk: The layers.
        spec: What the handshake agreed on.
        slot: The session's adapter and optimizer; None for a frozen trunk.
        limits: Bounds of what is kept.
        lock: Shared by all sessions of the trunk.
        on_finish: Called once when the silo declares the session complete.
        on_close: Called once when the session's state is freed.
        resumed: Tag of the optimizer state that `slot` goes on from; empty when it starts afresh.
    """

    def __init__(
        self,
        trunk: Trunk,
        spec: SessionSpec,
        slot: AdapterSlot | None,
        limits: SessionLimits,
        lock: threading.RLock,
        *,
        on_finish: Callable[[SessionSummary], None],
        on_close: Callable[[], None],
        resumed: str = "",
    ) -> None:
        self.resumed = resumed
        self._trunk = trunk
        self._spec = spec
        self._slot = slot
        self._limits = limits
        self._lock = lock
        self._on_finish = on_finish
        self._on_close = on_close
        self._pending: dict[int, tuple[Tensor, Tensor]] = {}
        self._border = Border(trunk, spec)
        self._caches = CacheShelf(trunk, limits.max_cached_tokens)
        self._steps = self._forwards = self._backwards = self._tokens = 0
        self._last_microbatch = -1
        self._ended = False

    def forward(self, request: ForwardRequest) -> Tensor:
        """h2 of a microbatch, (B, T, H).

        Raises:
            SequenceError: wrong step, a microbatch out of order, or an ended session.
            TrunkBusyError: too many activations or cached tokens.
            WireError: shapes do not fit the model, or the dtype is not the session's.
        """
        request = self._border.enter(request)
        with self._lock:
            self._check_step(request.step)
            if request.microbatch <= self._last_microbatch:
                raise SequenceError(
                    f"microbatch {request.microbatch} does not follow {self._last_microbatch}"
                )
            self._check_forward(request)
            rows, tokens = request.hidden.shape[:2]
            cache = None
            if request.cache is not None:
                cache = (
                    self._caches.scratch(rows)
                    if request.keep_graph
                    else self._caches.use(request.cache, rows, tokens)
                )
            self._last_microbatch = request.microbatch
            hidden = request.hidden.detach().requires_grad_(request.keep_graph)
            with torch.set_grad_enabled(request.keep_graph), self._computing(request):
                output: Tensor = self._trunk(
                    hidden,
                    attention_mask=(
                        None if request.attention_mask is None else request.attention_mask.long()
                    ),
                    position_ids=request.position_ids,
                    past_key_values=None if cache is None else cache.keys,
                )
            if cache is not None:
                cache.advance(tokens)
            if request.keep_graph:
                self._pending[request.microbatch] = (hidden, output)
            self._forwards += 1
            self._tokens += rows * tokens
            return self._border.leave(output)

    def backward(self, request: BackwardRequest) -> Tensor | None:
        """g1 of a microbatch, (B, T, H), or None when not wanted.

        The adapter's gradients are added to those of the step's earlier microbatches.

        Raises:
            SequenceError: wrong step, or a microbatch that has no activations here.
            WireError: the gradient's shape or dtype differs from h2's.
        """
        grad = self._border.enter_grad(request.grad)
        with self._lock:
            self._check_step(request.step)
            if request.microbatch not in self._pending:
                raise SequenceError(
                    f"microbatch {request.microbatch} has no activations here: it had no forward "
                    "pass with gradients in this step, or its backward pass was already made"
                )
            hidden, output = self._pending[request.microbatch]
            if grad.shape != output.shape:
                raise WireError(f"g2 is {tuple(grad.shape)}, expected {tuple(output.shape)}")
            del self._pending[request.microbatch]
            parameters = [] if self._slot is None else self._slot.activate()
            wanted = [hidden, *parameters] if request.wants_input_grad else parameters
            if not wanted:
                return None
            gradients = list(torch.autograd.grad(output, wanted, grad, allow_unused=True))
            input_grad = gradients.pop(0) if request.wants_input_grad else None
            if self._slot is not None:
                self._slot.accumulate(gradients)
            self._backwards += 1
            return None if input_grad is None else self._border.leave(input_grad)

    def release(self, microbatch: int) -> None:
        """Free the activations of a microbatch that gets no backward pass."""
        with self._lock:
            self._pending.pop(microbatch, None)

    def drop_cache(self, cache_id: int) -> None:
        """Free a key-value cache."""
        with self._lock:
            self._caches.drop(cache_id)

    def step(self, request: StepRequest) -> StepReply:
        """Clip by the global norm and step the adapter, once for each step number.

        Raises:
            SequenceError: not the next step, an evaluation session, or an ended one.
            WireError: learning rate or norms are out of bounds.
        """
        with self._lock:
            self._check_step(request.step)
            if self._spec.purpose != "train":
                raise SequenceError("an evaluation session makes no optimizer steps")
            settings = self._spec.optimizer
            if not 0.0 <= request.learning_rate <= settings.max_learning_rate:
                raise WireError(
                    f"learning rate {request.learning_rate} is outside 0 to "
                    f"{settings.max_learning_rate:g}"
                )
            before = checked_norms(request.norms_before)
            after = checked_norms(request.norms_after)
            own: tuple[float, ...] = ()
            if self._slot is not None:
                parameters = self._slot.gather()
                if settings.max_grad_norm > 0:
                    own = checked_norms(gradient_norms(parameters))
                    clip_by_global_norm(parameters, [*before, *own, *after], settings.max_grad_norm)
                self._slot.step(request.learning_rate)
            self._pending.clear()
            self._steps += 1
            return StepReply(norms=own)

    def finish(self) -> SessionSummary:
        """Declare the session complete; what it holds is freed by `close`.

        Raises:
            SequenceError: it was already ended.
        """
        with self._lock:
            self._check_step(self._steps)
            summary = SessionSummary(
                steps=self._steps,
                forwards=self._forwards,
                backwards=self._backwards,
                tokens=self._tokens,
            )
            self._on_finish(summary)
            self._ended = True
            self._free()
            return summary

    def close(self) -> None:
        """Free everything, however the session ended. Can be called twice."""
        with self._lock:
            self._ended = True
            self._free()

    def _free(self) -> None:
        self._pending.clear()
        self._caches.clear()
        self._on_close()

    @contextmanager
    def _computing(self, request: ForwardRequest) -> Iterator[None]:
        """Activate the session's adapter, and its own random numbers where there is dropout."""
        if self._slot is not None:
            self._slot.activate()
        if self._trunk.training != request.dropout:
            self._trunk.train(request.dropout)
        if not request.dropout:
            yield
            return
        device = request.hidden.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(hash((self._spec.seed, request.step, request.microbatch)))
            yield

    def _check_step(self, step: int) -> None:
        if self._ended:
            raise SequenceError("the session has ended")
        if step != self._steps:
            raise SequenceError(f"expected step {self._steps}, got step {step}")

    def _check_forward(self, request: ForwardRequest) -> None:
        hidden, mask, positions = request.hidden, request.attention_mask, request.position_ids
        width = self._trunk.hidden_size
        if hidden.dim() != 3 or 0 in hidden.shape or hidden.shape[2] != width:
            raise WireError(f"h1 is {tuple(hidden.shape)}, expected (rows, tokens, {width})")
        rows, tokens = hidden.shape[:2]
        if rows * tokens > self._limits.max_message_tokens:
            raise TrunkBusyError(
                f"the microbatch has {rows * tokens} tokens; the trunk takes at most "
                f"{self._limits.max_message_tokens}. Lower train.batch-size, or raise "
                "trunk.max-message-tokens"
            )
        past = 0 if request.cache is None else request.cache.past_length
        if mask is not None and tuple(mask.shape) != (rows, past + tokens):
            raise WireError(
                f"attention mask is {tuple(mask.shape)}, expected {(rows, past + tokens)}"
            )
        if positions is not None and tuple(positions.shape) not in ((rows, tokens), (1, tokens)):
            raise WireError(f"position ids are {tuple(positions.shape)}, expected {(rows, tokens)}")
        if not request.keep_graph:
            return
        if self._spec.purpose != "train" or past:
            raise SequenceError(
                "a graph is kept only in a training session and without a filled key-value "
                "cache; evaluate and generate under torch.no_grad()"
            )
        if len(self._pending) >= self._limits.max_in_flight:
            raise TrunkBusyError(
                f"{len(self._pending)} microbatches wait for their backward pass, the trunk's "
                "limit. Make backward passes sooner, or raise trunk.max-in-flight"
            )
