"""The harness of a session: requests as the reader lets them through, thousands a second.

The harness of the engine brings frames, a queue's thread and a larger model; this one asks the same
engine and the same session in the caller's thread, on a trunk of one layer, what no silo would ask.
A refused request ends nothing here, so that what follows finds whether it has changed anything.
"""

import atexit
from functools import cache

import torch
from asking import opened
from fuzz_choices import Choices
from fuzz_wire import documented
from tiny_models import tiny_model

from flower_split.adapters import TrunkAdapters, resolve_lora
from flower_split.adapters.trunk_adapters import MASTER
from flower_split.config.sections import LoraSettings
from flower_split.errors import SequenceError, TrunkError
from flower_split.lowrank import Instructions
from flower_split.segments import split_model
from flower_split.server.adapter_calls import AdapterCalls
from flower_split.server.border import TrunkBorder
from flower_split.server.compute.queue import BatchSettings, TrunkQueue
from flower_split.server.engine import TrunkEngine
from flower_split.server.session import TrunkSession
from flower_split.server.snapshots import SnapshotStore
from flower_split.server.stepping import AdapterSlot, Stepper
from flower_split.server.ticket_record import SessionOutcome, TicketRecord
from flower_split.transport.grpc.replies import encode_reply
from flower_split.transport.messages import (
    AdapterCall,
    AdapterReply,
    AdapterUse,
    BackwardReply,
    BackwardRequest,
    CacheEdit,
    CacheUse,
    Discard,
    DropCache,
    Finish,
    ForwardRequest,
    Release,
    SessionLimits,
    SessionSpec,
    StepRequest,
)
from flower_split.transport.rules import HopRules

HIDDEN = 4
LIMITS = SessionLimits(
    max_in_flight=2, max_message_tokens=16, max_cached_tokens=24, max_adapter_elements=4096
)
MODES = ("federated", "frozen", "shared", "prefix")
MOST_REQUESTS = 8
SHAPES = ((1, 1), (1, 2), (2, 1), (2, 3), (1, 5), (3, 1), (4, 4), (5, 4), (1, 16), (16, 1), (1, 17))
SCALES = (1.0, 1.0, 1.0, 0.0, 1e-38, 1e10, 1e30, 3e38)
RATES = (0.0, 1e-3, 1e-3, 1.0, 1e4, 1e30, -1.0, float("nan"), float("inf"), 5e-324)
NUMBERS = (0, 1, 1, 2, 3, 5, 16, 17, 24, 25, 63, 64, 65, -1, 2**31, 2**40, 2**63 - 1)
EDITS = ("reorder", "crop", "repeat", "select", "reset")
ACTIONS = (
    *("list", "read", "write", "copy", "snapshot", "restore", "snapshot_moments"),
    *("restore_moments", "ranks_update", "ranks_scores", "ranks_mask", "ranks_mask_again"),
    "ranks_reset",
)
NAMES = ("", "c", "d", "default", "5" * 64, "6" * 64, "../x", "x" * 300)
TEMPLATE = torch.randn(17, 17, HIDDEN, generator=torch.Generator().manual_seed(0))


class CallersQueue(TrunkQueue):
    """Does in the caller's thread, at once, what the trunk's queue has its own thread do."""

    def submit(self, job):
        if job.future.set_running_or_notify_cancel():
            self._compute([job])
        return job.future

    def call(self, work):
        future = super().call(work)
        self._take()()
        return future

    def _wake(self):
        self._note_change()


class KeptSlot(AdapterSlot):
    """Lets go of its copies alone when it is freed: PEFT takes milliseconds to make an adapter."""

    def free(self):
        for name in self._copies.values():
            self._adapters.remove(name)
        self._copies.clear()


class KeptWork:
    """The work of a session that nobody collects.

    Args:
        slot: Freed with it.
    """

    def __init__(self, slot: KeptSlot | None) -> None:
        self._slot = slot

    def outcome(self, summary):
        tensors = {} if self._slot is None else self._slot.sent()
        return SessionOutcome(tensors=tensors, summary=summary, scaling=None)

    def proposal(self, summary):
        return None

    def free(self):
        if self._slot is not None:
            self._slot.free()


class Bench:
    """The engine of one mode, and sessions beside it whose adapter is put back and not made anew.

    Args:
        mode: See `MODES`.
    """

    def __init__(self, mode: str) -> None:
        torch.set_num_threads(1)
        self.mode = mode
        trunk, plan = _trunk(mode)
        self.engine = TrunkEngine(
            trunk,
            plan=plan,
            mode="frozen" if mode == "prefix" else mode,
            limits=LIMITS,
            shares_adapter=plan is not None,
            prefix_tokens=2 if mode == "prefix" else 0,
        )
        self.engine.queue = CallersQueue(trunk, BatchSettings())
        self.specs = {p: self.engine.describe(p) for p in ("train", "evaluate")}
        self.rules = {p: HopRules(spec) for p, spec in self.specs.items()}
        self.trunk, _ = _trunk(mode)
        self.trunk.requires_grad_(False)
        self.queue = CallersQueue(self.trunk, BatchSettings())
        self.adapters = None if plan is None else TrunkAdapters(self.trunk, plan)
        if self.adapters is not None:
            self._start = self.adapters.state(MASTER)
            self._begun = self.adapters.begin_round(
                "own", Instructions(), self._start, scaling=None
            )
        self._neighbour = opened(self.engine, self.specs["evaluate"], None)
        atexit.register(self._neighbour.close)
        self._asked = 0
        self._expected = self._asks_the_neighbour()

    def opened(self, purpose: str, *, kept: bool):
        """A session and its queue.

        Args:
            purpose: The session's.
            kept: Whether it takes the adapter that is kept; else the engine makes one for it.
        """
        spec = self.specs[purpose]
        if not kept:
            return opened(self.engine, spec, None), self.engine.queue
        slot, record, limits = self._slot(spec), TicketRecord(), self.engine.limits
        record.open(KeptWork(slot))
        calls = None
        if slot is not None:
            is_alone, trains = self.queue.is_alone, purpose == "train"
            store = SnapshotStore()
            calls = AdapterCalls(slot, store, limits, silo="", is_alone=is_alone, trains=trains)
        session = TrunkSession(
            self.trunk,
            spec,
            TrunkBorder(self.trunk, spec),
            slot,
            limits,
            self.queue,
            record=record,
            calls=calls,
            prefix_width=HIDDEN if spec.prefix_tokens else 0,
        )
        return session, self.queue

    def _slot(self, spec: SessionSpec) -> KeptSlot | None:
        if self.adapters is None:
            return None
        self.adapters.load("own", self._start)
        if self.mode != "shared":
            stepper = Stepper(self.adapters, "own", spec.optimizer)
            return KeptSlot(self.adapters, "own", stepper, begun=self._begun)
        self.adapters.load(MASTER, self._start)
        stepper = Stepper(self.adapters, MASTER, spec.optimizer)
        return KeptSlot(self.adapters, "own", stepper, begun=None)

    def check_adapters(self) -> None:
        """Raise unless what sessions step is finite."""
        states = [self.engine.shared_state()]
        if self.adapters is not None:
            states += [self.adapters.state("own"), self.adapters.state(MASTER)]
        for state in states:
            for name, tensor in state.items():
                assert bool(tensor.isfinite().all()), name
        if self.mode == "shared":
            self.engine.load_shared_state(self._start)

    def check_neighbour(self) -> None:
        """Raise unless a session beside all others computes what it did before them."""
        if self.mode != "shared":
            assert torch.equal(self._asks_the_neighbour(), self._expected)

    def _asks_the_neighbour(self) -> torch.Tensor:
        number, self._asked = self._asked, self._asked + 1
        hidden = TEMPLATE[:1, :2]
        return self._neighbour.forward(ForwardRequest(step=0, microbatch=number, hidden=hidden))


def _trunk(mode: str):
    """A trunk of one layer, and the plan of its adapter where the mode has one."""
    model = tiny_model("gpt2", layers=3, n_embd=HIDDEN, n_head=2, n_positions=32)
    plan = None
    if mode in ("federated", "shared"):
        settings = LoraSettings(r=1, alpha=2.0, dropout=0.25, target_modules=("c_attn",))
        plan = resolve_lora(model, settings)
    return split_model(model, 1, 1)[1], plan


_bench = cache(Bench)


def session(data: bytes) -> None:
    """See the module."""
    choices = Choices(data)
    mode, purpose = choices.of(MODES), choices.of(("train", "train", "train", "evaluate"))
    bench, kept = _bench(mode), choices.byte() % 16 != 7
    asked, queue = bench.opened(purpose, kept=kept)
    step = microbatch = 0
    for _ in range(MOST_REQUESTS):
        if not choices.more:
            break
        request = _request(choices, step, microbatch)
        answer = asked.submit(request)
        error = answer.exception(0.0)
        if error is None:
            _check(request, answer.result(), bench.rules[purpose])
            step += isinstance(request, StepRequest)
            microbatch += isinstance(request, ForwardRequest)
            if isinstance(request, Finish):
                break
        elif not isinstance(error, TrunkError):
            raise error
        else:
            documented(error)
    asked.close()
    assert queue.budget.kept == 0 and queue.is_alone()
    assert isinstance(asked.submit(Finish()).exception(0.0), SequenceError)
    bench.check_adapters()
    if len(data) % 8 == 0 or not kept:
        bench.check_neighbour()


def _number(choices: Choices, usual: int) -> int:
    return usual if choices.byte() % 8 else choices.of(NUMBERS)


def _tensor(choices: Choices) -> torch.Tensor:
    rows, tokens = choices.of(SHAPES)
    hidden = TEMPLATE[:rows, :tokens]
    scale = choices.of(SCALES)
    return hidden if scale == 1.0 else (hidden / 8).clamp(-1, 1) * scale


def _cache(choices: Choices) -> CacheUse:
    edits = []
    for _ in range(choices.below(3)):
        values = tuple(choices.of(NUMBERS) for _ in range(choices.below(4)))
        edits.append(CacheEdit(kind=choices.of(EDITS), values=values))
    return CacheUse(cache_id=choices.below(3), past_length=choices.of(NUMBERS), edits=tuple(edits))


def _forward(choices: Choices, step: int, microbatch: int) -> ForwardRequest:
    hidden, flags, more = _tensor(choices), choices.byte(), choices.byte()
    rows, tokens = hidden.shape[:2]
    cached = _cache(choices) if more % 3 == 0 else None
    mask = positions = prefix = None
    past = 0 if cached is None else min(max(cached.past_length, 0), 64)
    if flags & 4:
        width = _number(choices, past + tokens)
        mask = torch.ones(rows, width % 128, dtype=torch.bool)
        mask[:, : choices.below(3)] = False
    if flags & 8:
        first = choices.of(NUMBERS)
        positions = (torch.arange(tokens) + first)[None]
    if flags & 16:
        shape = (2 * rows if flags & 32 else 2, 2, HIDDEN)
        prefix = torch.full(shape, choices.of(SCALES))
    return ForwardRequest(
        step=_number(choices, step),
        microbatch=_number(choices, microbatch),
        hidden=hidden,
        attention_mask=mask,
        position_ids=positions,
        prefix=prefix,
        keep_graph=bool(flags & 1),
        dropout=bool(flags & 2),
        cache=cached,
        adapter=AdapterUse(
            disabled=more % 16 == 1,
            copy=choices.of(NAMES) if more % 16 == 2 else "",
            scale=choices.float() if more % 16 == 4 else 1.0,
        ),
        autocast="bfloat16" if more % 16 == 5 else "",
    )


def _backward(choices: Choices, step: int, microbatch: int) -> BackwardRequest:
    flags = choices.byte()
    return BackwardRequest(
        step=_number(choices, step),
        microbatch=_number(choices, microbatch - 1 - (flags & 1)),
        grad=_tensor(choices),
        wants_input_grad=bool(flags & 6),
        adapter_grad=("add", "measure", "drop", "return")[flags >> 6],
        orthogonality_grad=choices.float() if flags & 56 == 8 else 0.0,
    )


def _step(choices: Choices, step: int) -> StepRequest:
    flags = choices.byte()
    return StepRequest(
        step=_number(choices, step),
        learning_rate=choices.of(RATES),
        norms_before=tuple(choices.float() for _ in range(flags & 3)),
        norms_after=(0.5,) * (flags >> 6),
        scale=choices.float() if flags & 4 else 1.0,
        clip=choices.float() if flags & 8 else float("inf"),
        keeps_gradient=bool(flags & 16),
    )


def _call(choices: Choices) -> AdapterCall:
    action, name = choices.of(ACTIONS), choices.of(NAMES)
    tensors: tuple[torch.Tensor, ...] = ()
    if action == "write":
        scale = choices.of(SCALES)
        sizes = ((1, HIDDEN), (3 * HIDDEN, 1), (3,))[: choices.below(4)]
        tensors = tuple(torch.full(size, scale) for size in sizes)
    threshold = choices.float() if action == "ranks_mask" else 0.0
    return AdapterCall(action=action, name=name, tensors=tensors, threshold=threshold)


def _request(choices: Choices, step: int, microbatch: int):
    kind = choices.below(20)
    if kind < 8:
        return _forward(choices, step, microbatch)
    if kind < 13:
        return _backward(choices, step, microbatch)
    if kind < 15:
        return _step(choices, step)
    if kind == 15:
        return _call(choices)
    if kind == 16:
        return Discard(zeros=choices.yes())
    if kind == 17:
        return Release(microbatch=_number(choices, microbatch - 1))
    return DropCache(cache_id=choices.below(3)) if kind == 18 else Finish()


def _check(request, reply, rules: HopRules) -> None:
    """Raise unless `reply` is of its request's kind and shape."""
    if isinstance(request, ForwardRequest):
        assert reply.shape == request.hidden.shape and reply.dtype == request.hidden.dtype
    elif isinstance(request, BackwardRequest):
        grad = reply.grad if isinstance(reply, BackwardReply) else reply
        assert (grad is None) != request.wants_input_grad
    elif isinstance(request, AdapterCall):
        assert isinstance(reply, AdapterReply)
    if isinstance(request, BackwardRequest | StepRequest | AdapterCall):
        if getattr(reply, "prefix_grad", None) is not None:
            return  # a silo knows of its prefix, which a request does not carry
        try:
            encode_reply(request, reply, rules)
        except TrunkError as error:  # values that no reply may have
            documented(error)


SEEDS = {
    "session": lambda: [
        bytes([mode, purpose, kept, *requests])
        for mode in range(len(MODES))
        for purpose in (0, 3)
        for kept in (0, 7)
        for requests in (
            # forward, backward, step
            (0, 3, 0, 1, 1, 1, 1, 8, 2, 1, 1, 3, 0, 13, 0, 1, 1),
            # generating: a cache is begun, extended, edited
            (0, 3, 0, 0, 0, 0, 1, 0, 1, 1, 0, 2, 0, 0, 0, 0, 1, 4, 1, 1),
            (15, 0, 0, 15, 1, 0, 15, 3, 1, 15, 4, 4, 15, 5, 4, 19, 0),
        )
    ]
}
HARNESSES = {"session": session}
