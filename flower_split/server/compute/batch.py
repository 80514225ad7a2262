"""Computing: the forward and the backward pass of one batch, of one session's rows or of several.

What is computed alone is computed exactly as if no other session were there. A batch of several
has one graph, which serves one backward pass: of all its rows, or of at least half of them when
the others are late. Who comes later, and fewer than half, have their rows computed anew for their
backward pass. So no silo waits for another's gradient, a graph lives no longer than half of its
rows do, and no row's backward pass costs more than three passes.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flower_split.devices import autocast_dtype, autocasting
from flower_split.privacy.row_gradients import RowRecord
from flower_split.segments import Trunk
from flower_split.segments.randomness import LayerDraws, numbers_aside
from flower_split.server.caches import TrunkCache
from flower_split.server.compute.activation_budget import ActivationBudget
from flower_split.server.compute.rows import cut, join, join_tensors
from flower_split.server.stepping import AdapterSlot
from flower_split.transport.messages import BackwardRequest, ForwardRequest


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionContext:
    """What a session brings to the computation of its rows."""

    number: int
    """The session's."""
    slot: AdapterSlot | None
    seed: int
    """Of its dropout."""
    open_cache: Callable[[ForwardRequest, Tensor | None], TrunkCache | None]
    """The key-value cache that a request extends, given the prefix that it begins with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Leaves:
    """Where the autograd graph of one batch begins."""

    hidden: Tensor
    """h1, (B, T, H)."""
    prefix: Tensor | None = None
    """(2 L R, V, W); of one that is computed alone."""
    term: Tensor | None = None
    """AdaLoRA's, a second end of the same graph; of one that is computed alone."""
    rows: RowRecord | None = None
    """Where gradients are told row by row; of one that is computed alone."""

    @property
    def tokens(self) -> int:
        """Rows x tokens, those of the prefix among them."""
        before = 0 if self.prefix is None else self.prefix.shape[1]
        return self.hidden.shape[0] * (self.hidden.shape[1] + before)


class Graph:
    """The autograd graph of one batch, and the microbatches whose backward pass it serves."""

    def __init__(
        self,
        number: int,
        leaves: "Leaves",
        output: Tensor,
        members: "list[Microbatch]",
        budget: ActivationBudget,
        on_change: "Callable[[Graph], None]",
    ) -> None:
        self.number = number
        self.leaves = leaves
        self.output = output
        self.members = members
        self._rows = sum(member.shape[0] for member in members)
        self._budget = budget
        self._on_change = on_change
        self._waiting = set(members)
        self._tokens = leaves.tokens
        budget.take(self._tokens)
        for member in members:
            member.graph = self
        on_change(self)

    @property
    def sessions(self) -> set[int]:
        """Sessions whose backward pass it still serves."""
        return {member.session.number for member in self._waiting}

    def serves(self, members: Sequence["Microbatch"]) -> bool:
        """Whether a backward pass of `members` through it costs less than computing them anew."""
        return 2 * sum(member.shape[0] for member in members) >= self._rows

    def leave(self, member: "Microbatch") -> None:
        """`member` needs it no longer; it is freed when fewer than half of its rows do."""
        if member in self._waiting:
            self._waiting.discard(member)
            member.graph = None
            if not self._waiting or not self.serves(list(self._waiting)):
                self.free()
            else:
                self._on_change(self)

    def free(self) -> None:
        """Let go of it, once; whoever waits yet is computed anew for its backward pass."""
        self._budget.give_back(self._tokens)
        for member in self._waiting:
            member.graph = None
        self._waiting.clear()
        self._on_change(self)


@dataclass(kw_only=True, eq=False)
class Microbatch:
    """A forward pass that a backward pass will follow."""

    session: SessionContext
    request: ForwardRequest
    memory: int = 0
    """Bytes that its passes need, computed alone."""
    graph: Graph | None = None
    """None where the activations are not kept."""
    orthogonality: float | None = None
    """AdaLoRA's term as it was computed last; None with any other method."""
    draws: LayerDraws | None = None
    """Of layers that are not all of the trunk's; None of those that are."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and tokens a row."""
        rows, tokens = self.request.hidden.shape[:2]
        return rows, tokens

    @property
    def tokens(self) -> int:
        """Rows x tokens, those of the prefix among them."""
        prefix = self.request.prefix
        rows, tokens = self.shape
        return rows * (tokens + (0 if prefix is None else prefix.shape[1]))

    def free(self) -> None:
        """Forget it."""
        if self.graph is not None:
            self.graph.leave(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Gradients:
    """What the backward pass of one microbatch gave."""

    hidden: Tensor | None = None
    """At h1, where it is wanted."""
    prefix: Tensor | None = None
    """At the prefix, where there was one."""
    adapter: Sequence[Tensor | None] = ()
    """Of the adapter's tensors."""
    rows: RowRecord | None = None
    """Of its tensors, row by row, where they are told so."""


class TrunkComputer:
    """Computes batches on one trunk, one at a time.

    Args:
        trunk: The layers.
        budget: Of what is kept for backward passes.
        recompute: Whether nothing is, and every backward pass computes its rows anew.
        drops: Whether anything is dropped in training.
        on_change: Told of every graph that was made, or serves other microbatches than before.
    """

    def __init__(
        self,
        trunk: Trunk,
        budget: ActivationBudget,
        *,
        recompute: bool,
        drops: bool = True,
        on_change: Callable[[Graph], None],
    ) -> None:
        self._drops = drops
        self._trunk = trunk
        self._on_change = on_change
        self._numbers = itertools.count()
        self._budget = budget
        self._recompute = recompute

    def forward(self, microbatches: Sequence[Microbatch]) -> list[Tensor]:
        """h2 of each, (B, T, H)."""
        first = microbatches[0].request
        width = max(microbatch.shape[1] for microbatch in microbatches)
        rows = sum(microbatch.shape[0] for microbatch in microbatches)
        tokens = width * rows if len(microbatches) > 1 else microbatches[0].tokens
        keeps = first.keep_graph and not self._recompute and tokens <= self._budget.room
        leaves, output = self._run(microbatches, grad=keeps)
        if keeps:
            number = next(self._numbers)
            Graph(number, leaves, output, list(microbatches), self._budget, self._on_change)
        return cut(output.detach(), [microbatch.shape for microbatch in microbatches])

    def backward(
        self, microbatches: Sequence[Microbatch], requests: Sequence[BackwardRequest]
    ) -> list[Gradients]:
        """What the gradients at h2 are at h1 and for the adapters, of each.

        All are of one graph, or their graphs are gone.
        """
        graph = microbatches[0].graph
        if graph is not None and graph.serves(microbatches):
            members, leaves, output = graph.members, graph.leaves, graph.output
            graph.free()
        else:
            members = list(microbatches)
            for member in members:
                member.free()
            leaves, output = self._run(members, grad=True)
        given = dict(zip(microbatches, requests, strict=True))
        grads = [
            given[member].grad if member in given else output.new_zeros(*member.shape, 1)
            for member in members
        ]
        grads = [grad.expand(*grad.shape[:2], output.shape[2]) for grad in grads]
        wants_input = any(request.wants_input_grad for request in requests)
        return self._differentiate(members, given, leaves, output, grads, wants_input)

    def _differentiate(
        self,
        members: Sequence[Microbatch],
        given: dict[Microbatch, BackwardRequest],
        leaves: Leaves,
        output: Tensor,
        grads: list[Tensor],
        wants_input: bool,
    ) -> list[Gradients]:
        parameters = {
            member: [] if member.session.slot is None else member.session.slot.trainable()
            for member in given
        }
        wanted = [leaves.hidden] if wants_input else []
        if leaves.prefix is not None:
            wanted.append(leaves.prefix)
        held, rows = next(iter(given)).session.slot, leaves.rows
        if rows is not None:
            parameters = {member: [] for member in given}
        wanted += [parameter for own in parameters.values() for parameter in own]
        if not wanted and rows is None:
            return [Gradients() for _ in given]
        grad = grads[0] if len(grads) == 1 else join_tensors(grads, output.shape[1])
        ends, at_ends = [output], [grad]
        # Of a session that is computed alone; without a gradient where its adapter was disabled.
        term, at_term = leaves.term, next(iter(given.values())).orthogonality_grad
        if term is not None and at_term and term.requires_grad:
            ends.append(term)
            at_ends.append(term.new_tensor(at_term))
        if rows is not None and held is not None and held.rows is not None:
            found = held.rows.watch.differentiate(ends, at_ends, wanted, rows)
        else:
            found = list(torch.autograd.grad(ends, wanted, at_ends, allow_unused=True))
        inputs: dict[Microbatch, Tensor | None] = {}
        whole = found.pop(0) if wants_input else None
        if whole is not None:
            parts = cut(whole, [member.shape for member in members])
            inputs = dict(zip(members, parts, strict=True))
        prefix = None
        if leaves.prefix is not None:
            prefix = found.pop(0)
            prefix = torch.zeros_like(leaves.prefix) if prefix is None else prefix
        answers: list[Gradients] = []
        for member, own in parameters.items():
            mine: list[Tensor | None] = [*found[: len(own)]]
            found = found[len(own) :]
            wants = given[member].wants_input_grad
            hidden = inputs.get(member) if wants else None
            answers.append(Gradients(hidden=hidden, prefix=prefix, adapter=mine, rows=rows))
        return answers

    def _run(self, microbatches: Sequence[Microbatch], *, grad: bool) -> tuple[Leaves, Tensor]:
        """The batch that was laid for them, and what the trunk makes of it."""
        first = microbatches[0]
        rows = join([microbatch.request for microbatch in microbatches])
        given = first.request.prefix
        leaves = Leaves(
            hidden=rows.hidden.detach().requires_grad_(grad),
            prefix=None if given is None else given.detach().requires_grad_(grad),
        )
        mask = rows.attention_mask
        cache: TrunkCache | None = None
        slot = first.session.slot
        watch = None if slot is None or slot.rows is None or not grad else slot.rows.watch
        record = None if watch is None else watch.record(len(rows.hidden), rows.hidden.device)
        recording = nullcontext() if watch is None else watch.recording(record)
        with torch.set_grad_enabled(grad), self._prepared(microbatches), recording:
            if len(microbatches) == 1:
                cache = first.session.open_cache(first.request, leaves.prefix)
            output: Tensor = self._trunk(
                leaves.hidden,
                attention_mask=None if mask is None else mask.long(),
                position_ids=rows.position_ids,
                past_key_values=None if cache is None else cache.keys,
                autocast=autocast_dtype(first.request.autocast or "off"),
                draws=self._draws(microbatches),
            )
            term = self._orthogonality(first)
        if cache is not None:
            cache.advance(leaves.hidden.shape[1])
        return replace(leaves, term=term, rows=record), output

    def _draws(self, microbatches: Sequence[Microbatch]) -> LayerDraws | None:
        """Where random numbers go on of a pass that draws some, and is a stage's."""
        first = microbatches[0]
        draws = self._drops and first.request.dropout and len(microbatches) == 1
        return first.draws if draws else None

    def _orthogonality(self, microbatch: Microbatch) -> Tensor | None:
        """AdaLoRA's term of a session's adapter, computed as the silo computes its own part."""
        slot, request = microbatch.session.slot, microbatch.request
        if slot is None:
            return None
        dtype = autocast_dtype(request.autocast or "off")
        with autocasting(request.hidden.device, dtype):
            term = slot.orthogonality()
        microbatch.orthogonality = None if term is None else float(term.detach())
        return term

    @contextmanager
    def _prepared(self, microbatches: Sequence[Microbatch]) -> Iterator[None]:
        """Let the sessions' adapters compute, and their random numbers where there is dropout."""
        first = microbatches[0]
        with ExitStack() as stack:
            slots = [m.session.slot for m in microbatches if m.session.slot is not None]
            if len(microbatches) == 1:
                if not slots and first.request.adapter.disabled:
                    stack.enter_context(self._trunk.without_adapter())
                for slot in slots:
                    stack.enter_context(slot.computing(first.request.adapter))
            elif slots:
                counts = [microbatch.shape[0] for microbatch in microbatches]
                stack.enter_context(slots[0].mixed(slots, counts))
            training = first.request.dropout and len(microbatches) == 1
            if self._trunk.training != training:
                self._trunk.train(training)
            if training and self._drops:
                # Silos or other stages may compute beside it in this process.
                stack.enter_context(numbers_aside(first.request.hidden.device))
                key = (first.session.seed, first.request.step, first.request.microbatch)
                torch.manual_seed(hash(key))
            yield
