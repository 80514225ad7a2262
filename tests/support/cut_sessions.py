"""Sessions of every kind by hand, over connections that are cut: what each of them yields."""

import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from cut_training import HIDDEN, Trained, tensor
from cutting_relay import Cut, CuttingRelay
from hosting import hosting
from tiny_models import tiny_model

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
    AdapterUse,
    BackwardRequest,
    CacheEdit,
    CacheUse,
    ForwardRequest,
    Purpose,
    StepRequest,
)

MODES = ("federated", "shared", "frozen", "prefix")
PREFIX = (4, 2, 8)
"""Keys and values of two layers, the same for all rows; two tokens."""
IN_FLIGHT = 4
_TAG = "7" * 64


@dataclass
class Silo:
    """What a silo asks in one session, without waiting for more than it must.

    Args:
        transport: To the trunk.
        mode: See `MODES`.
    """

    transport: Transport
    mode: str

    def __post_init__(self) -> None:
        self._answers: list[Future[Any]] = []
        self._numbers = itertools.count()
        self._step = 0
        self._has_adapter = self.mode in ("federated", "shared")
        self._prefix = {"prefix": torch.ones(PREFIX)} if self.mode == "prefix" else {}

    def work(self, purpose: Purpose) -> list[Any]:
        """Everything that the trunk answers, and its summary at the end."""
        if self._has_adapter:
            self._call("read")
            self._call("copy", name="c")
        if purpose == "train":
            for _ in range(2):
                self._make_step()
            if self._has_adapter:
                self._overwrite()
        self._generate()
        return [*(answer.result(60) for answer in self._answers), self.transport.finish()]

    def _call(self, action: Any, **fields: Any) -> None:
        self._answers.append(self.transport.adapter(AdapterCall(action=action, **fields)))

    def _forward(self, tokens: int = 5, **fields: Any) -> int:
        number = next(self._numbers)
        hidden = tensor(number, tokens)
        request = ForwardRequest(step=self._step, microbatch=number, hidden=hidden, **fields)
        self._answers.append(self.transport.forward(request))
        return number

    def _make_step(self) -> None:
        begun = [
            self._forward(keep_graph=True, dropout=True, **self._prefix) for _ in range(IN_FLIGHT)
        ]
        fates = itertools.cycle(("add", "return", "measure") if self._has_adapter else ("add",))
        for number, fate in zip(begun, fates, strict=False):
            request = BackwardRequest(
                step=self._step,
                microbatch=number,
                grad=tensor(500 + number),
                adapter_grad=fate,  # type: ignore[arg-type]
                prefix_shape=PREFIX if self._prefix else (),
            )
            self._answers.append(self.transport.backward(request))
        last = self._step == 1
        if last:
            self.transport.discard(zeros=True)
        step = StepRequest(
            step=self._step, learning_rate=0.01, norms_before=(0.5,), keeps_gradient=last
        )
        self._answers.append(self.transport.step(step))
        self._step += 1
        if self._has_adapter and not last:
            self._call("snapshot_moments", name=_TAG)

    def _overwrite(self) -> None:
        held = self._answers[0].result(60).tensors
        self._call("write", tensors=tuple(one + 0.01 for one in held))
        self._call("restore_moments", name=_TAG)
        self._call("read")
        self._forward(adapter=AdapterUse(copy="c", scale=0.5))
        self._forward(adapter=AdapterUse(disabled=True), autocast="bfloat16")

    def _generate(self) -> None:
        past = 2 if self._prefix else 0
        edits: tuple[tuple[int, tuple[CacheEdit, ...]], ...] = (
            (0, ()),
            (0, (CacheEdit(kind="reorder", values=(1, 0)),)),
            (2, (CacheEdit(kind="crop", values=(2,)),)),
            (0, (CacheEdit(kind="select", values=(1, 0)),)),
        )
        self._extend(past, 4, (), **self._prefix)
        past += 4
        for dropped, made in edits:
            past -= dropped
            self._extend(past, 1, made)
            past += 1
        self.transport.drop_cache(1)

    def _extend(self, past: int, tokens: int, edits: tuple[CacheEdit, ...], **fields: Any) -> None:
        self._forward(
            tokens,
            cache=CacheUse(cache_id=1, past_length=past, edits=edits),
            attention_mask=torch.ones(2, past + tokens, dtype=torch.bool),
            position_ids=torch.arange(past, past + tokens)[None],
            **fields,
        )


class KindsRig:
    """An engine of one mode behind a server and a relay; every session begins from the same.

    Args:
        mode: See `MODES`.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        model = tiny_model(layers=4, hidden_size=HIDDEN)
        plan = None
        if mode in ("federated", "shared"):
            plan = resolve_lora(model, LoraSettings(r=2, alpha=4.0, dropout=0.1))
        self.engine = TrunkEngine(
            split_model(model, 1, 1)[1],
            plan=plan,
            mode="frozen" if mode == "prefix" else mode,
            shares_adapter=plan is not None,
            prefix_tokens=2 if mode == "prefix" else 0,
        )
        self._start = {name: one.clone() for name, one in self.engine.shared_state().items()}
        self._book = TicketBook()
        self._rounds = itertools.count()

    @contextmanager
    def serving(self) -> Iterator["KindsRig"]:
        with hosting(self.engine, admit=self._book) as server:
            self._address = server.address
            yield self

    def session(
        self, purpose: Purpose, codec: str = "fp32", cut: Cut = lambda message: None
    ) -> Trained:
        """What a session yields over connections that are cut where `cut` says."""
        self.engine.load_session_states(())
        self.engine.load_shared_state(self._start)
        ticket = self._book.issue(1, 2, next(self._rounds), purpose)
        start = TrunkStart(tensors=self._start if self.mode == "federated" else {})
        record = self.engine.prepare(ticket, start)
        wire = WireConfig.uniform(codec)
        spec = replace(self.engine.describe(purpose), wire=wire, silo="a", seed=7)
        with (
            CuttingRelay(self._address, cut) as relay,
            GrpcTransport(relay.address, spec, ticket) as transport,
        ):
            answers = Silo(transport, self.mode).work(purpose)
            sent, reconnects = transport.wire_bytes, transport.reconnects
        outcome = record.collect()
        assert outcome is not None
        self.engine.discard(ticket)
        left = self.engine.shared_state() if self.mode == "shared" else dict(outcome.tensors)
        return Trained(answers, sent, {**left, "-": torch.zeros(1)}, reconnects)
