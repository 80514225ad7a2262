"""Several silos at one trunk of any family, whose passes are made together or one by one."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch
from asking import AS_GRADIENTS, SECONDS, Asking, opened
from torch import Tensor
from transformers import PreTrainedModel

from flower_split.adapters import resolve_lora
from flower_split.config.sections import LoraSettings
from flower_split.segments import split_model
from flower_split.server.compute.queue import BatchSettings
from flower_split.server.engine import TrunkEngine
from flower_split.server.ticket_record import TrunkStart
from flower_split.transport.messages import BackwardRequest, ForwardRequest, StepRequest, Ticket

TOGETHER = BatchSettings(batching=True, gather_ms=60_000.0)


def make_trunk(
    model: PreTrainedModel, batching: BatchSettings | None, **options: Any
) -> TrunkEngine:
    """An engine on the middle layers of `model`, which is left as it is; silos keep their AdamW."""
    lora = options.pop("lora", LoraSettings(r=3, alpha=6.0, dropout=0.0))
    plan = resolve_lora(model, lora)
    _, trunk = split_model(model, 1, 1)
    return TrunkEngine(trunk, plan=plan, batching=batching, keep_optimizer=True, **options)


def open_silo(engine: TrunkEngine, seed: int) -> Asking:
    """A session with an adapter of its own, made from `seed`; see `gradients_of`."""
    silo = f"silo-{seed}"
    ticket = Ticket(run_id=1, node_id=seed, server_round=1, token=silo)
    generator, record = torch.Generator().manual_seed(seed), None
    if engine.plan is not None:
        own = {
            name: 0.2 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in engine.shared_state().items()
        }
        record = engine.prepare(ticket, TrunkStart(tensors=own))
    spec = replace(engine.describe(), seed=seed, silo=silo, optimizer=AS_GRADIENTS)
    return opened(engine, spec, ticket, record)


def complete(futures: Sequence["Future[Any]"]) -> list[Any]:
    """What the futures hold, once the trunk has computed them."""
    return [future.result(SECONDS) for future in futures]


def submitted(
    sessions: Sequence[Asking], requests: Sequence[ForwardRequest] | Sequence[BackwardRequest]
) -> list["Future[Any]"]:
    """One request of every silo, all waiting before any is computed."""
    with sessions[0].engine.queue.exclusive():
        return [session.submit(one) for session, one in zip(sessions, requests, strict=True)]


@dataclass
class Made:
    """What one silo got."""

    h2: Tensor
    g1: Tensor
    gradients: list[Tensor]


def passes(
    sessions: Sequence[Asking],
    forwards: Sequence[ForwardRequest],
    grads: Sequence[Tensor],
) -> list[Made]:
    """One forward and one backward pass of every silo, all waiting at once."""
    outputs = complete(submitted(sessions, forwards))
    back = [
        BackwardRequest(step=request.step, microbatch=request.microbatch, grad=grad)
        for request, grad in zip(forwards, grads, strict=True)
    ]
    inputs = complete(submitted(sessions, back))
    return [
        Made(h2=h2, g1=g1, gradients=gradients_of(session))
        for session, h2, g1 in zip(sessions, outputs, inputs, strict=True)
    ]


def gradients_of(session: Asking) -> list[Tensor]:
    """The gradients of the first step so far, of every tensor of the silo's adapter that has one.

    It makes the step and ends the session.
    """
    if session.ticket is None or session.record is None:
        return []
    session.step(StepRequest(step=0, learning_rate=0.0))
    session.finish()
    assert session.record.collect() is not None
    session.engine.accept(session.ticket)
    for left in session.engine.session_states():
        if left.silo == session.spec.silo:
            return [t for n, t in left.state.moments.items() if n.endswith("/exp_avg")]
    return []


def furthest(one: Made, other: Made) -> float:
    """The largest difference of two silos' results, over the largest element of h2, of g1, or of
    all gradients: a gradient may be zero but for rounding, as that of a lone token's query is."""
    assert len(one.gradients) == len(other.gradients)
    groups = [
        ([one.h2], [other.h2]),
        ([one.g1], [other.g1]),
        (one.gradients, other.gradients),
    ]
    return max(
        max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
        / max(1e-12, *(float(b.abs().max()) for b in theirs))
        for ours, theirs in groups
    )
