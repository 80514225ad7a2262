"""A session against a model of it: whatever comes out of order is refused, and changes nothing."""

from typing import Any, ClassVar

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tiny_models import tiny_model
from torch import Tensor

from flower_split.adapters import resolve_lora
from flower_split.config.sections import LoraSettings
from flower_split.errors import SequenceError
from flower_split.segments import split_model
from flower_split.server.engine import TrunkEngine
from flower_split.server.ticket_record import TrunkStart
from flower_split.transport.messages import (
    BackwardRequest,
    Finish,
    ForwardRequest,
    Release,
    Request,
    StepRequest,
    Ticket,
)

HIDDEN = 16
MOST = 8
"""Microbatches that may wait for their backward pass."""
offsets = st.integers(-2, 3).filter(bool)
picks = st.integers(0, 10**6)


def make_engine() -> TrunkEngine:
    model = tiny_model(layers=4, hidden_size=HIDDEN)
    plan = resolve_lora(model, LoraSettings(r=2, alpha=4.0, dropout=0.1))
    _, trunk = split_model(model, 1, 1)
    return TrunkEngine(trunk, plan=plan)


def tensor(seed: int) -> Tensor:
    return torch.randn(1, 3, HIDDEN, generator=torch.Generator().manual_seed(seed))


class End:
    """One session of an engine."""

    engines: ClassVar[dict[str, TrunkEngine]] = {}
    count = 0

    def __init__(self, name: str) -> None:
        self.engine = self.engines.setdefault(name, make_engine())
        End.count += 1
        self.ticket = Ticket(run_id=1, node_id=2, server_round=3, token=str(End.count))
        start = TrunkStart(tensors=self.engine.shared_state())
        self.record = self.engine.prepare(self.ticket, start)
        self.session = self.engine.open(self.engine.describe(), self.ticket).result(60)

    def ask(self, request: Request) -> Any:
        return self.session.submit(request).result(60)

    def adapter(self) -> dict[str, Tensor]:
        """What the session leaves, which ends it."""
        self.ask(Finish())
        outcome = self.record.collect()
        assert outcome is not None
        return dict(outcome.tensors)

    def close(self) -> None:
        self.session.close().result(60)
        self.engine.discard(self.ticket)


class SessionMachine(RuleBasedStateMachine):
    """`tried` is asked everything, `proper` only what is in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tried, self.proper = End("tried"), End("proper")
        self.step = 0
        self.newest = -1
        self.waiting: set[int] = set()

    def teardown(self) -> None:
        try:
            mine, theirs = self.tried.adapter(), self.proper.adapter()
            assert mine.keys() == theirs.keys() and mine
            for name, value in mine.items():
                assert torch.equal(value, theirs[name]), name
        finally:
            self.tried.close()
            self.proper.close()

    def agree(self, request: Request) -> None:
        mine, theirs = self.tried.ask(request), self.proper.ask(request)
        same = torch.equal if isinstance(mine, Tensor) else type(mine).__eq__
        assert same(mine, theirs)

    def refused(self, request: Request, message: str) -> None:
        with pytest.raises(SequenceError, match=message):
            self.tried.ask(request)

    def forward(self, step: int, microbatch: int) -> ForwardRequest:
        return ForwardRequest(
            step=step,
            microbatch=microbatch,
            hidden=tensor(microbatch),
            keep_graph=True,
            dropout=True,
        )

    def backward(self, step: int, microbatch: int) -> BackwardRequest:
        return BackwardRequest(step=step, microbatch=microbatch, grad=tensor(microbatch + 1000))

    @precondition(lambda self: len(self.waiting) < MOST)
    @rule(skipped=st.integers(0, 2))
    def next_forward(self, skipped: int) -> None:
        self.newest += 1 + skipped
        self.agree(self.forward(self.step, self.newest))
        self.waiting.add(self.newest)

    @precondition(lambda self: self.waiting)
    @rule(pick=picks)
    def a_backward(self, pick: int) -> None:
        microbatch = sorted(self.waiting)[pick % len(self.waiting)]
        self.agree(self.backward(self.step, microbatch))
        self.waiting.remove(microbatch)

    @precondition(lambda self: self.waiting)
    @rule(pick=picks)
    def a_release(self, pick: int) -> None:
        microbatch = sorted(self.waiting)[pick % len(self.waiting)]
        self.agree(Release(microbatch=microbatch))
        self.waiting.remove(microbatch)

    @rule()
    def next_step(self) -> None:
        self.agree(StepRequest(step=self.step, learning_rate=0.01))
        self.step += 1
        self.waiting.clear()

    @precondition(lambda self: self.newest >= 0)
    @rule(pick=picks)
    def a_forward_that_was_made(self, pick: int) -> None:
        """Or was skipped."""
        microbatch = pick % (self.newest + 1)
        self.refused(
            self.forward(self.step, microbatch),
            f"microbatch {microbatch} does not follow {self.newest}",
        )

    @rule(pick=picks)
    def a_backward_without_a_forward(self, pick: int) -> None:
        """Or one that was made, or whose activations were freed by a release or a step."""
        free = [number for number in range(self.newest + 3) if number not in self.waiting]
        microbatch = free[pick % len(free)]
        self.refused(
            self.backward(self.step, microbatch), f"microbatch {microbatch} has no activations"
        )

    @rule(offset=offsets)
    def another_step(self, offset: int) -> None:
        """Older ones were made, later ones would leave one out."""
        step = self.step + offset
        if step < 0:
            return
        expected = f"expected step {self.step}, got step {step}"
        self.refused(StepRequest(step=step, learning_rate=0.01), expected)
        self.refused(self.forward(step, self.newest + 1), expected)
        for microbatch in list(self.waiting)[:1]:
            self.refused(self.backward(step, microbatch), expected)

    @invariant()
    def the_trunk_s_own_adapter_is_as_it_was(self) -> None:
        mine, theirs = self.tried.engine.shared_state(), self.proper.engine.shared_state()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


TestSession = SessionMachine.TestCase
TestSession.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestSession = pytest.mark.medium(TestSession)
