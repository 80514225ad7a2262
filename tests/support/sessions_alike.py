"""Sessions alike: everything that a session of an engine or a chain yields, to be compared."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from cut_sessions import Silo
from hosting import hosting
from torch import Tensor

from flower_split.server.engine import TrunkEngine
from flower_split.server.stages.chain import Chain
from flower_split.server.ticket_record import TrunkStart
from flower_split.transport.base import Transport
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.local import InProcessTransport
from flower_split.transport.messages import Ticket


def yields(
    engine: TrunkEngine | Chain[Any], mode: str, purpose: Any, *, over_grpc: bool = False
) -> list[Any]:
    """Everything that a session answers and leaves.

    Over gRPC nothing is waited for that need not be, so that several passes are under way.
    """
    ticket = Ticket(run_id=1, node_id=2, server_round=3, token="t")
    engine.load_session_states(())
    started = start_of(engine)
    engine.load_shared_state(started)
    record = engine.prepare(ticket, TrunkStart(tensors=started if mode == "federated" else {}))
    spec = replace(engine.describe(purpose), silo="a", seed=7)
    with ExitStack() as stack:
        transport: Transport
        if over_grpc:
            server = stack.enter_context(hosting(engine))
            transport = stack.enter_context(GrpcTransport(server.address, spec, ticket))
        else:
            transport = stack.enter_context(InProcessTransport(engine, spec, ticket))
        answers = Silo(transport, mode).work(purpose)
    outcome = record.collect()
    assert outcome is not None
    summary = replace(answers.pop(), queue=outcome.summary.queue)
    engine.accept(ticket)
    engine.discard(ticket)
    return [
        *map(plain, answers),
        replace(summary, queue=type(summary.queue)()),
        dict(outcome.tensors),
        engine.shared_state(),
        [plain(state) for state in engine.session_states()],
    ]


def start_of(engine: TrunkEngine | Chain[Any]) -> dict[str, Tensor]:
    """An adapter that does something, the same for all."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(tensor.shape, generator=generator) / 4
        for name, tensor in engine.shared_state().items()
    }


def plain(value: Any) -> Any:
    """`value` as something that `same` compares."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def same(one: Any, other: Any) -> bool:
    """Whether both are equal, tensors to the bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
