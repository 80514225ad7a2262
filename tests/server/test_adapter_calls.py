"""What a silo may have done with the trunk's adapter, asked by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pairs import make_pair
from tiny_models import tiny_model

from flower_split import split_model
from flower_split.errors import SequenceError, TrunkError, WireError
from flower_split.server.engine import TrunkEngine
from flower_split.server.local import LocalTransport
from flower_split.transport.messages import (
    AdapterCall,
    AdapterUse,
    BackwardRequest,
    ForwardRequest,
)

TAG = "0b" * 32


def session(mode: str = "federated") -> tuple[LocalTransport, Any]:
    pair = make_pair(mode=mode)
    spec = pair.transport.spec
    pair.transport.close()
    return LocalTransport(pair.engine, spec), pair


def call(transport: LocalTransport, action: Any, **fields: Any) -> Any:
    return transport.adapter(AdapterCall(action=action, **fields)).result()


@pytest.mark.medium
def test_the_list_is_the_trunks_part_of_the_plan() -> None:
    transport, pair = session()
    held = call(transport, "list").held
    assert [name for name, _ in held] == list(pair.trunk_state)
    assert all(shape == tuple(pair.trunk_state[name].shape) for name, shape in held)


@pytest.mark.parametrize("action", ["read", "write"])
def test_an_adapter_that_is_not_shared_is_neither_read_nor_written(action: str) -> None:
    transport, pair = session()
    tensors = tuple(pair.trunk_state.values()) if action == "write" else ()
    with pytest.raises(SequenceError, match="does not give its part of the adapter"):
        call(transport, action, tensors=tensors)


@pytest.mark.parametrize("action", ["list", "snapshot", "restore", "copy"])
def test_a_frozen_trunk_has_none(action: str) -> None:
    transport, _ = session("frozen")
    with pytest.raises(SequenceError, match="frozen: it has no adapter"):
        call(transport, action, name="" if action == "list" else TAG)


@pytest.mark.medium
def test_copies_are_few_and_must_be_there() -> None:
    transport, _ = session()
    for name in ("one", "two", "one"):
        call(transport, "copy", name=name)
    hidden = torch.zeros(1, 3, 32)
    request = ForwardRequest(step=0, microbatch=0, hidden=hidden, adapter=AdapterUse(copy="two"))
    assert transport.forward(request).result().shape == hidden.shape
    with pytest.raises(SequenceError, match="may have 2 copies"):
        call(transport, "copy", name="three")
    transport, _ = session()
    with pytest.raises(SequenceError, match="no copy 'two'"):
        transport.forward(request).result()


def test_a_closed_session_leaves_no_copy() -> None:
    transport, pair = session()
    before = {name for name, _ in pair.engine.trunk.named_parameters()}
    other = LocalTransport(pair.engine, transport.spec)
    call(other, "copy", name="one")
    assert {name for name, _ in pair.engine.trunk.named_parameters()} > before
    other.close()
    assert {name for name, _ in pair.engine.trunk.named_parameters()} == before


@pytest.mark.medium
def test_a_shared_trunk_is_restored_only_while_nobody_else_trains_it() -> None:
    transport, pair = session("shared")
    call(transport, "snapshot", name=TAG)
    call(transport, "restore", name=TAG)
    other = LocalTransport(pair.engine, transport.spec)
    for action in ("restore", "restore_moments"):
        again = LocalTransport(pair.engine, transport.spec)
        with pytest.raises(SequenceError, match="no other silo has a session"):
            call(again, action, name=TAG)
    other.close()


@pytest.mark.parametrize("action", ["restore", "restore_moments"])
def test_an_evaluation_changes_no_shared_adapter(action: str) -> None:
    transport, pair = session("shared")
    kept = "snapshot_moments" if action == "restore_moments" else "snapshot"
    call(transport, kept, name=TAG)
    transport.close()
    other = LocalTransport(pair.engine, replace(transport.spec, purpose="evaluate"))
    with pytest.raises(SequenceError, match="not restored by an evaluation session"):
        call(other, action, name=TAG)


@pytest.mark.medium
def test_a_backward_pass_goes_by_the_adapter_of_its_forward_pass_or_not_at_all() -> None:
    transport, _ = session()
    hidden = torch.ones(1, 3, 32)
    call(transport, "snapshot", name=TAG)
    request = ForwardRequest(step=0, microbatch=0, hidden=hidden, keep_graph=True)
    transport.forward(request).result()
    call(transport, "restore", name=TAG)
    with pytest.raises(SequenceError, match="the adapter was written or restored since"):
        transport.backward(BackwardRequest(step=0, microbatch=0, grad=hidden)).result()


@pytest.mark.medium
def test_moments_are_not_an_adapter() -> None:
    transport, _ = session()
    call(transport, "snapshot_moments", name=TAG)
    with pytest.raises(SequenceError, match="a snapshot of another adapter"):
        call(transport, "restore", name=TAG)
    transport, _ = session()
    call(transport, "snapshot", name=TAG)
    with pytest.raises(SequenceError, match="a snapshot of another optimizer"):
        call(transport, "restore_moments", name=TAG)


@pytest.mark.medium
def test_tensors_that_do_not_fit_change_nothing() -> None:
    pair = make_pair()
    spec = pair.transport.spec
    pair.transport.close()
    _, trunk = split_model(tiny_model(), 1, 2)
    engine = TrunkEngine(trunk, plan=pair.plan, initial=pair.trunk_state, shares_adapter=True)
    good = tuple(pair.trunk_state.values())
    bad: list[tuple[torch.Tensor, ...]] = [
        good[:-1],
        (torch.zeros(3), *good[1:]),
        (torch.full_like(good[0], torch.nan), *good[1:]),
    ]
    for tensors in bad:
        with pytest.raises((WireError, TrunkError)):
            call(LocalTransport(engine, spec), "write", tensors=tensors)
        kept = call(LocalTransport(engine, spec), "read").tensors
        assert all(torch.equal(a, b) for a, b in zip(kept, good, strict=True))
    transport = LocalTransport(engine, spec)
    call(transport, "write", tensors=tuple(tensor * 2 for tensor in good))
    written = call(transport, "read").tensors
    assert all(torch.equal(a, 2 * b) for a, b in zip(written, good, strict=True))


@pytest.mark.medium
def test_names_of_copies_that_look_alike_leave_nothing_behind() -> None:
    transport, pair = session()
    before = {name for name, _ in pair.engine.trunk.named_parameters()}
    other = LocalTransport(pair.engine, transport.spec)
    for name in ("a.b", "a-b", "a.b", "a-b"):
        call(other, "copy", name=name)
    other.close()
    assert {name for name, _ in pair.engine.trunk.named_parameters()} == before
