"""A training session by hand, with all that a session can be asked, and everything it yields."""

import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch
from cutting_relay import Cut, CuttingRelay
from hosting import hosting
from tiny_models import tiny_model
from torch import Tensor

from flower_split.adapters import resolve_lora
from flower_split.config.sections import LoraSettings, WireConfig
from flower_split.segments import split_model
from flower_split.server.engine import TrunkEngine
from flower_split.server.ticket_record import TrunkStart
from flower_split.server.tickets import TicketBook
from flower_split.transport.base import Transport
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.messages import (
    AdapterCall,
    BackwardRequest,
    CacheUse,
    ForwardRequest,
    SessionSummary,
    StepRequest,
    WireBytes,
)

TAG = "0b" * 32
HIDDEN = 16


def tensor(seed: int, tokens: int = 5) -> Tensor:
    return torch.randn(2, tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def train(transport: Transport, *, steps: int, in_flight: int, tokens: int) -> list[Any]:
    """Everything that the trunk answers, in order, and its summary at the end."""
    numbers = itertools.count()
    answers: list[Future[Any]] = [transport.adapter(AdapterCall(action="list"))]
    mask = torch.ones(2, tokens, dtype=torch.bool)
    for step in range(steps):
        for _ in range(2):
            batch = [next(numbers) for _ in range(in_flight)]
            for number in batch:
                answers.append(
                    transport.forward(
                        ForwardRequest(
                            step=step,
                            microbatch=number,
                            hidden=tensor(number, tokens),
                            attention_mask=mask,
                            keep_graph=True,
                            dropout=True,
                        )
                    )
                )
            for number in batch[:-1]:
                answers[-len(batch) + batch.index(number)].result(60)
            transport.release(batch[-1])
            for number in batch[:-1]:
                grad = tensor(1000 + number, tokens)
                measured = "measure" if number == batch[0] else "add"
                answers.append(
                    transport.backward(
                        BackwardRequest(
                            step=step,
                            microbatch=number,
                            grad=grad,
                            adapter_grad=measured,  # type: ignore[arg-type]
                        )
                    )
                )
        answers.append(
            transport.step(StepRequest(step=step, learning_rate=0.01, norms_before=(0.5,)))
        )
        action: Any = "snapshot" if step == 0 else "restore"
        answers.append(transport.adapter(AdapterCall(action=action, name=TAG)))
        answers.append(transport.adapter(AdapterCall(action="read")))
    number = next(numbers)
    cache = CacheUse(cache_id=1, past_length=0)
    answers.append(
        transport.forward(
            ForwardRequest(step=steps, microbatch=number, hidden=tensor(number), cache=cache)
        )
    )
    transport.drop_cache(1)
    transport.discard(zeros=False)
    results = [one.result(60) for one in answers]
    return [*results, transport.finish()]


class Trained:
    """What one session yielded, at both ends."""

    def __init__(
        self, answers: list[Any], wire: WireBytes, adapter: dict[str, Tensor], reconnects: int
    ) -> None:
        self.answers = answers
        self.wire = wire
        self.adapter = adapter
        self.reconnects = reconnects

    def assert_equals(self, other: "Trained") -> None:
        """To the bit."""
        assert len(self.answers) == len(other.answers)
        for mine, theirs in zip(self.answers, other.answers, strict=True):
            assert same(mine, theirs), (mine, theirs)
        assert self.wire == other.wire
        assert self.adapter.keys() == other.adapter.keys() and self.adapter
        for name, value in self.adapter.items():
            assert torch.equal(value, other.adapter[name]), name


def same(mine: Any, theirs: Any) -> bool:
    """Equal to the bit, down to the last tensor; how long requests waited is no result."""
    if isinstance(mine, Tensor):
        return torch.equal(mine, theirs)
    if isinstance(mine, tuple):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    if isinstance(mine, SessionSummary):
        fields = ("steps", "forwards", "backwards", "tokens", "wire_bytes")
        return all(getattr(mine, field) == getattr(theirs, field) for field in fields)
    if hasattr(mine, "__dataclass_fields__"):
        return all(same(value, getattr(theirs, name)) for name, value in vars(mine).items())
    return bool(mine == theirs)


class Rig:
    """An engine behind a server and a relay; every session has a ticket of its own."""

    def __init__(self) -> None:
        model = tiny_model(layers=4, hidden_size=HIDDEN)
        plan = resolve_lora(model, LoraSettings(r=2, alpha=4.0, dropout=0.1))
        _, trunk = split_model(model, 1, 1)
        self.engine = TrunkEngine(trunk, plan=plan, shares_adapter=True)
        self.book = TicketBook()
        self.rounds = itertools.count()

    @contextmanager
    def serving(self, **options: Any) -> Iterator[Any]:
        with hosting(self.engine, admit=self.book, **options) as server:
            self.server = server
            yield server

    def trained(
        self, cut: Cut = lambda message: None, codec: str = "fp32", **shape: int
    ) -> tuple[Trained, CuttingRelay]:
        """A session over connections that are cut where `cut` says."""
        ticket = self.book.issue(1, 2, next(self.rounds), "train")
        start = TrunkStart(tensors=self.engine.shared_state())
        record = self.engine.prepare(ticket, start)
        described = self.engine.describe()
        spec = type(described)(
            **{**vars(described), "wire": WireConfig.uniform(codec), "silo": "a", "seed": 7}
        )
        given = {"steps": 2, "in_flight": 3, "tokens": 5, **shape}
        with (
            CuttingRelay(self.server.address, cut) as relay,
            GrpcTransport(relay.address, spec, ticket) as transport,
        ):
            answers = train(transport, **given)
            wire, reconnects = transport.wire_bytes, transport.reconnects
        outcome = record.collect()
        assert outcome is not None
        self.engine.discard(ticket)
        return Trained(answers, wire, dict(outcome.tensors), reconnects), relay
