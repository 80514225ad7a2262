"""The trunk engine: sessions that share weights and nothing else."""

import gc
import json
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from asking import SECONDS, Asking, opened
from tiny_models import tiny_model
from torch import Tensor

from flower_split.adapters import initial_state, resolve_lora, split_state
from flower_split.config.sections import LoraSettings, WireConfig
from flower_split.errors import (
    AdapterError,
    ConfigError,
    HandshakeError,
    SequenceError,
    TrunkBusyError,
    WireError,
)
from flower_split.lowrank import Allowance, Instructions, Scaling, folded_name
from flower_split.optimization.settings import OptimizerSettings
from flower_split.segments import layers_path, split_model
from flower_split.server.compute.queue import BatchSettings
from flower_split.server.engine import TrunkEngine
from flower_split.server.ticket_record import Stage, TrunkStart
from flower_split.transport.messages import (
    BackwardRequest,
    CacheEdit,
    CacheUse,
    ForwardRequest,
    SessionLimits,
    SessionSpec,
    StepRequest,
    Ticket,
)
from flower_split.transport.state_tags import state_tag

LORA = LoraSettings(r=2, alpha=4.0, dropout=0.0)


def make_engine(mode: str = "federated", lora: LoraSettings = LORA, **options: Any) -> TrunkEngine:
    model = tiny_model(layers=4, hidden_size=16)
    plan = None if mode == "frozen" else resolve_lora(model, lora)
    _, trunk = split_model(model, 1, 1)
    engine = TrunkEngine(trunk, plan=plan, mode=mode, **options)
    if plan is not None:
        state = initial_state(model, lora, seed=3)
        state = {n: t + 0.05 for n, t in state.items()}
        engine.load_shared_state(split_state(state, layers_path(model), trunk.cuts)[1])
    return engine


def hidden(seed: int, rows: int = 2, tokens: int = 5) -> Tensor:
    return torch.randn(rows, tokens, 16, generator=torch.Generator().manual_seed(seed))


def turn(session: Asking, step: int, microbatch: int, seed: int) -> Tensor:
    session.forward(
        ForwardRequest(step=step, microbatch=microbatch, hidden=hidden(seed), keep_graph=True)
    )
    grad = session.backward(
        BackwardRequest(step=step, microbatch=microbatch, grad=hidden(seed + 100))
    )
    assert grad is not None
    return grad


def stepped(session: Asking, steps: range, seed: int) -> None:
    for step in steps:
        turn(session, step, step, seed + step)
        session.step(StepRequest(step=step, learning_rate=0.01))


def ticket(name: str) -> Ticket:
    return Ticket(run_id=1, node_id=2, server_round=3, token=name)


def prepared(engine: TrunkEngine, name: str = "a") -> Asking:
    """A session that starts from the master's adapter and leaves its own."""
    start = TrunkStart(tensors=engine.shared_state())
    record = engine.prepare(ticket(name), start)
    return opened(engine, engine.describe(), ticket(name), record)


def trained_adapter(session: Asking) -> dict[str, Tensor]:
    """What the session, which it ends, has made of its adapter or of the one that all share."""
    session.finish()
    if session.engine.mode == "shared":
        return session.engine.shared_state()
    assert session.record is not None
    outcome = session.record.collect()
    assert outcome is not None
    return dict(outcome.tensors)


def adapters_at(engine: TrunkEngine) -> set[str]:
    """Names of the adapters that the trunk's layers hold."""
    names = (name for name, _ in engine.trunk.named_parameters())
    return {name.partition(".lora_A.")[2].partition(".")[0] for name in names if ".lora_A." in name}


@pytest.mark.medium
def test_interleaved_sessions_equal_separate_ones_to_the_bit() -> None:
    alone = []
    for seed in (10, 20):
        engine = make_engine()
        session = prepared(engine)
        stepped(session, range(3), seed)
        alone.append(trained_adapter(session))
    engine = make_engine()
    sessions = [prepared(engine, name) for name in "ab"]
    for step in range(3):
        for session, seed in zip(sessions, (10, 20), strict=True):
            session.forward(
                ForwardRequest(
                    step=step, microbatch=step, hidden=hidden(seed + step), keep_graph=True
                )
            )
        for session, seed in zip(sessions, (10, 20), strict=True):
            session.backward(
                BackwardRequest(step=step, microbatch=step, grad=hidden(seed + step + 100))
            )
            session.step(StepRequest(step=step, learning_rate=0.01))
    for session, expected in zip(sessions, alone, strict=True):
        found = trained_adapter(session)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name]), name
    assert not torch.equal(*(next(iter(state.values())) for state in alone))


@pytest.mark.medium
@pytest.mark.parametrize("mode", ["federated", "shared"])
def test_sessions_that_come_and_go_change_nothing_for_an_open_one(mode: str) -> None:
    states = []
    for disturbed in (False, True):
        engine = make_engine(mode)
        session = prepared(engine)
        turn(session, 0, 0, 0)
        for step in range(3):
            comes = opened(engine, engine.describe(), None) if disturbed else None
            turn(session, step, 2 * step + 1, step)
            if comes is not None:
                comes.close()
            turn(session, step, 2 * step + 2, step + 10)
            session.step(StepRequest(step=step, learning_rate=0.01))
        states.append(trained_adapter(session))
    assert states[0]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_shared_sessions_step_one_adapter_with_their_own_gradients() -> None:
    engine = make_engine("shared")
    first, second = (opened(engine, engine.describe(), None) for _ in range(2))
    start = engine.shared_state()
    turn(first, 0, 0, 1)
    turn(second, 0, 0, 2)
    first.step(StepRequest(step=0, learning_rate=0.01))
    middle = engine.shared_state()
    second.step(StepRequest(step=0, learning_rate=0.01))
    end = engine.shared_state()
    for name in start:
        assert not torch.equal(start[name], middle[name])
        assert not torch.equal(middle[name], end[name])
    third = opened(engine, engine.describe(), None)
    refreshed = second.forward(ForwardRequest(step=1, microbatch=1, hidden=hidden(3)))
    assert torch.equal(
        refreshed, third.forward(ForwardRequest(step=0, microbatch=0, hidden=hidden(3)))
    )
    stale = first.forward(ForwardRequest(step=1, microbatch=1, hidden=hidden(3)))
    assert not torch.equal(refreshed, stale)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("protocol_version", 99),
        ("fingerprint", "00"),
        ("num_layers", 5),
        ("bottom_layers", 2),
        ("top_layers", 0),
        ("dtype", "bfloat16"),
        ("trunk_adapters", "shared"),
        ("adapter", "{}"),
        ("wire.h1", WireConfig(h1="bf16")),
        ("wire.g1", WireConfig(g1="fp16")),
        ("pack", "ab" * 32),
    ],
)
def test_a_handshake_names_the_field_that_differs(field: str, value: Any) -> None:
    engine = make_engine(wire=WireConfig(), dtype="float32")
    with pytest.raises(HandshakeError, match=rf"differ in {field}[:.]"):
        opened(engine, replace(engine.describe(), **{field.partition(".")[0]: value}), None)
    assert adapters_at(engine) == {"master"}


def test_a_handshake_names_the_constant_that_differs() -> None:
    engine = make_engine(optimizer=OptimizerSettings(max_grad_norm=1.0))
    spec = replace(engine.describe(), optimizer=OptimizerSettings(max_grad_norm=2.0))
    with pytest.raises(HandshakeError, match=r"optimizer\.max_grad_norm"):
        opened(engine, spec, None)


def test_a_handshake_names_the_adapter_setting_that_differs() -> None:
    engine, other = make_engine(), make_engine(lora=LoraSettings(r=3, alpha=4.0))
    with pytest.raises(HandshakeError, match=r"adapter\.r: the trunk has 2, the silo 3"):
        opened(engine, replace(engine.describe(), adapter=other.describe().adapter), None)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"r": 2}'])
def test_a_hostile_adapter_text_is_a_mismatch(text: str) -> None:
    engine = make_engine()
    with pytest.raises(HandshakeError, match="adapter"):
        opened(engine, replace(engine.describe(), adapter=text), None)


def test_order_is_enforced_and_a_refused_call_changes_nothing() -> None:
    found = []
    for refused in (False, True):
        session = prepared(make_engine())
        start = session.engine.shared_state()
        if refused:
            with pytest.raises(SequenceError, match="expected step 0, got step 1"):
                session.forward(ForwardRequest(step=1, microbatch=0, hidden=hidden(0)))
        turn(session, 0, 4, 0)
        if refused:
            with pytest.raises(SequenceError, match="does not follow 4"):
                session.forward(ForwardRequest(step=0, microbatch=4, hidden=hidden(0)))
            with pytest.raises(SequenceError, match="no activations"):
                session.backward(BackwardRequest(step=0, microbatch=4, grad=hidden(0)))
            with pytest.raises(SequenceError, match="expected step 0"):
                session.step(StepRequest(step=3, learning_rate=0.1))
        session.step(StepRequest(step=0, learning_rate=0.1))
        if refused:
            with pytest.raises(SequenceError, match="expected step 1, got step 0"):
                session.step(StepRequest(step=0, learning_rate=0.1))
        found.append(trained_adapter(session))
        assert (session.summary.steps, session.summary.backwards) == (1, 1)
        assert any(not torch.equal(found[-1][n], start[n]) for n in start)
    plain, tried = found
    assert all(torch.equal(tried[n], t) for n, t in plain.items())


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        ({"hidden": torch.zeros(2, 5, 8)}, WireError, "h1: hidden size 8"),
        ({"hidden": torch.zeros(2, 16)}, WireError, "h1: shape"),
        ({"hidden": torch.zeros(0, 5, 16)}, WireError, "h1: shape"),
        ({"hidden": torch.zeros(2, 5, 16, dtype=torch.float64)}, WireError, "float64"),
        ({"hidden": torch.zeros(9, 9, 16)}, TrunkBusyError, "9 x 9 tokens"),
        (
            {"hidden": torch.zeros(2, 5, 16), "attention_mask": torch.ones(2, 4).bool()},
            WireError,
            "attention_mask",
        ),
        (
            {"hidden": torch.zeros(2, 5, 16), "position_ids": torch.ones(3, 5).long()},
            WireError,
            "position_ids",
        ),
        (
            {"hidden": torch.zeros(2, 5, 16), "cache": CacheUse(cache_id=1, past_length=3)},
            SequenceError,
            "not known",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    request_: dict[str, Any], error: type[Exception], says: str
) -> None:
    engine = make_engine(limits=SessionLimits(max_message_tokens=80))
    session = opened(engine, engine.describe(), None)
    with pytest.raises(error, match=says):
        session.forward(ForwardRequest(step=0, microbatch=0, **request_))
    turn(session, 0, 0, 0)


def test_gradients_of_another_shape_are_refused() -> None:
    engine = make_engine()
    session = opened(engine, engine.describe(), None)
    session.forward(ForwardRequest(step=0, microbatch=0, hidden=hidden(0), keep_graph=True))
    with pytest.raises(WireError, match="g2 is"):
        session.backward(BackwardRequest(step=0, microbatch=0, grad=torch.zeros(1, 5, 16)))


@pytest.mark.parametrize("rate", [-1.0, float("nan"), 2.0])
def test_a_learning_rate_out_of_bounds_is_refused(rate: float) -> None:
    engine = make_engine(optimizer=OptimizerSettings(max_learning_rate=1.0))
    session = opened(engine, engine.describe(), None)
    with pytest.raises(WireError, match="learning rate"):
        session.step(StepRequest(step=0, learning_rate=rate))


@pytest.mark.medium
def test_activations_are_bounded_and_freed_however_the_session_ends() -> None:
    engine = make_engine(limits=SessionLimits(max_in_flight=2))
    kept: list[weakref.ref[Tensor]] = []
    engine.trunk.register_forward_hook(lambda *made: kept.append(weakref.ref(made[-1])))
    session = opened(engine, engine.describe(), None)
    for microbatch in range(2):
        session.forward(
            ForwardRequest(step=0, microbatch=microbatch, hidden=hidden(0), keep_graph=True)
        )
    with pytest.raises(TrunkBusyError, match=r"trunk\.max-in-flight"):
        session.forward(ForwardRequest(step=0, microbatch=2, hidden=hidden(0), keep_graph=True))
    assert len(kept) == 2
    assert all(reference() is not None for reference in kept)
    session.close()
    session.close()
    gc.collect()
    assert all(reference() is None for reference in kept)
    assert adapters_at(engine) == {"master"}
    with pytest.raises(SequenceError, match="ended"):
        session.finish()


def test_only_a_finished_session_leaves_an_adapter() -> None:
    engine = make_engine()
    state = {n: t + 1 for n, t in engine.shared_state().items()}
    records = []
    for name, finishes in (("a", True), ("b", False)):
        records.append(engine.prepare(ticket(name), TrunkStart(tensors=state)))
        session = opened(engine, engine.describe(), ticket(name))
        stepped(session, range(1), 5)
        if finishes:
            assert session.finish().steps == 1
        session.close()
    finished, left = records
    outcome = finished.collect()
    assert outcome is not None
    assert all(not torch.equal(outcome.tensors[n], state[n]) for n in state)
    assert finished.collect() is None
    assert left.collect() is None


def test_a_session_that_finishes_after_it_was_discarded_leaves_nothing() -> None:
    engine = make_engine()
    record = engine.prepare(ticket("late"), TrunkStart(tensors=engine.shared_state()))
    session = opened(engine, engine.describe(), ticket("late"))
    stepped(session, range(1), 5)
    engine.discard(ticket("late"))
    session.finish()
    session.close()
    assert record.collect() is None
    assert record.stage is Stage.DISCARDED
    with pytest.raises(SequenceError, match="not prepared, or discarded"):
        engine.accept(ticket("late"))
    # The token is free again, as one that was never seen.
    again = engine.prepare(ticket("late"), TrunkStart(tensors=engine.shared_state()))
    assert again.stage is Stage.PREPARED


def test_a_ticket_opens_one_session_and_is_prepared_once() -> None:
    engine = make_engine()
    start = TrunkStart(tensors=engine.shared_state())
    engine.prepare(ticket("a"), start)
    with pytest.raises(SequenceError, match="prepared before"):
        engine.prepare(ticket("a"), start)
    session = opened(engine, engine.describe(), ticket("a"))
    for _ in range(2):
        with pytest.raises(SequenceError, match="is open and cannot be opened"):
            opened(engine, engine.describe(), ticket("a"))
    assert session.finish().steps == 0
    session.close()


@pytest.mark.medium
def test_a_refused_handshake_leaves_the_ticket_as_it_was() -> None:
    engine = make_engine()
    record = engine.prepare(ticket("a"), TrunkStart(tensors=engine.shared_state()))
    with pytest.raises(HandshakeError):
        opened(engine, replace(engine.describe(), num_layers=99), ticket("a"))
    assert record.stage is Stage.PREPARED
    assert not record.is_broken
    session = opened(engine, engine.describe(), ticket("a"))
    assert record.stage is Stage.OPEN
    session.close()


def test_a_session_whose_ticket_nobody_prepared_leaves_nothing_behind() -> None:
    engine = make_engine()
    session = opened(engine, engine.describe(), ticket("unknown"))
    stepped(session, range(1), 5)
    assert session.finish().steps == 1
    session.close()
    engine.discard(ticket("unknown"))
    assert engine.prepare(ticket("unknown"), TrunkStart()).collect() is None


def trained(engine: TrunkEngine, name: str, *, counts: bool = True) -> str:
    """A session of the silo `north` that made a step; the tag that it resumed from."""
    spec = replace(engine.describe(), silo="north", session_states=tuple(TAGS))
    record = engine.prepare(ticket(name), TrunkStart(tensors=engine.shared_state()))
    session = opened(engine, spec, ticket(name))
    stepped(session, range(1), 5)
    session.finish()
    session.close()
    assert record.collect() is not None
    if counts:
        engine.accept(ticket(name))
    engine.discard(ticket(name))
    return session.resumed


TAGS = [state_tag(ticket(name)) for name in "abcd"]


def test_the_next_session_resumes_from_the_last_one_that_was_accepted() -> None:
    engine = make_engine(keep_optimizer=True)
    assert trained(engine, "a", counts=False) == ""
    assert trained(engine, "b") == ""
    assert trained(engine, "c", counts=False) == TAGS[1]
    assert trained(engine, "d") == TAGS[1]
    assert [state.tag for state in engine.session_states()] == [TAGS[3]]
    with pytest.raises(SequenceError):
        engine.accept(ticket("d"))


def test_a_silo_without_a_name_leaves_no_state() -> None:
    engine = make_engine(keep_optimizer=True)
    record = engine.prepare(ticket("a"), TrunkStart(tensors=engine.shared_state()))
    session = opened(engine, engine.describe(), ticket("a"))
    stepped(session, range(1), 5)
    session.finish()
    session.close()
    assert record.collect() is not None
    engine.accept(ticket("a"))
    assert engine.session_states() == []


def test_loaded_states_take_the_place_of_what_was_proposed_before() -> None:
    engine = make_engine(keep_optimizer=True)
    trained(engine, "a")
    kept = engine.session_states()
    record = engine.prepare(ticket("b"), TrunkStart(tensors=engine.shared_state()))
    session = opened(engine, replace(engine.describe(), silo="north"), ticket("b"))
    stepped(session, range(1), 5)
    session.finish()
    session.close()
    engine.load_session_states(kept)
    assert record.collect() is not None
    engine.accept(ticket("b"))
    assert [state.tag for state in engine.session_states()] == [TAGS[0]]


def test_a_prepared_adapter_that_does_not_fit_opens_no_session() -> None:
    engine = make_engine()
    engine.prepare(ticket("a"), TrunkStart(tensors={"unknown": torch.zeros(1)}))
    with pytest.raises(AdapterError, match="do not fit"):
        opened(engine, engine.describe(), ticket("a"))
    assert adapters_at(engine) == {"master"}


def test_an_evaluation_session_trains_nothing() -> None:
    engine = make_engine()
    session = opened(engine, engine.describe("evaluate"), None)
    with pytest.raises(SequenceError, match="evaluate"):
        session.forward(ForwardRequest(step=0, microbatch=0, hidden=hidden(0), keep_graph=True))
    with pytest.raises(SequenceError, match="evaluation"):
        session.step(StepRequest(step=0, learning_rate=0.1))
    session.forward(ForwardRequest(step=0, microbatch=1, hidden=hidden(0)))


@pytest.mark.medium
def test_no_evaluation_drops_anything_out_in_whatever_order_sessions_come() -> None:
    engine = make_engine(lora=replace(LORA, dropout=0.5))
    requests = [ForwardRequest(step=0, microbatch=n, hidden=hidden(0)) for n in range(2)]
    outputs = []
    for purpose in ("evaluate", "evaluate", "train", "evaluate", "evaluate"):
        session = opened(engine, engine.describe(purpose), None)
        if purpose == "train":
            session.forward(replace(requests[0], keep_graph=True, dropout=True))
        else:
            outputs += [session.forward(request) for request in requests]
        session.close()
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.medium
def test_a_pass_with_gradients_keeps_no_cache() -> None:
    engine = make_engine()
    session = opened(engine, engine.describe(), None)
    fresh = CacheUse(cache_id=0, past_length=0)
    session.forward(
        ForwardRequest(step=0, microbatch=0, hidden=hidden(0), keep_graph=True, cache=fresh)
    )
    with pytest.raises(SequenceError, match="not known"):
        grown = CacheUse(cache_id=0, past_length=5)
        session.forward(ForwardRequest(step=0, microbatch=1, hidden=hidden(0), cache=grown))
    with pytest.raises(SequenceError, match="filled"):
        session.forward(
            ForwardRequest(step=0, microbatch=1, hidden=hidden(0), keep_graph=True, cache=grown)
        )


@pytest.mark.medium
def test_dropout_depends_on_the_sessions_seed_alone() -> None:
    def run(seed: int) -> Tensor:
        engine = make_engine(lora=LoraSettings(r=2, alpha=4.0, dropout=0.5))
        session = opened(engine, replace(engine.describe(), seed=seed), None)
        before = torch.get_rng_state()
        output = session.forward(
            ForwardRequest(step=0, microbatch=0, hidden=hidden(0), dropout=True)
        )
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(1)
        return output

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_caches_are_bounded() -> None:
    engine = make_engine(limits=SessionLimits(max_cached_tokens=24))
    session = opened(engine, engine.describe(), None)
    first = CacheUse(cache_id=0, past_length=0)
    session.forward(ForwardRequest(step=0, microbatch=0, hidden=hidden(0), cache=first))
    with pytest.raises(TrunkBusyError, match="max-cached-tokens"):
        session.forward(
            ForwardRequest(
                step=0,
                microbatch=1,
                hidden=hidden(0, rows=4),
                cache=CacheUse(cache_id=1, past_length=0),
            )
        )
    with pytest.raises(TrunkBusyError, match="max-cached-tokens"):
        edits = (CacheEdit(kind="repeat", values=(100,)),)
        session.forward(
            ForwardRequest(
                step=0,
                microbatch=1,
                hidden=hidden(0, rows=200, tokens=1),
                cache=CacheUse(cache_id=0, past_length=5, edits=edits),
            )
        )
    session.drop_cache(0)
    session.forward(
        ForwardRequest(
            step=0,
            microbatch=2,
            hidden=hidden(0, rows=4),
            cache=CacheUse(cache_id=1, past_length=0),
        )
    )


@pytest.mark.parametrize(
    "edit",
    [
        CacheEdit(kind="reorder", values=(0, 7)),
        CacheEdit(kind="reorder", values=(0,)),
        CacheEdit(kind="select", values=()),
        CacheEdit(kind="select", values=(-1,)),
        CacheEdit(kind="crop", values=(99,)),
        CacheEdit(kind="repeat", values=(0,)),
    ],
)
def test_a_cache_edit_that_does_not_fit_is_refused(edit: CacheEdit) -> None:
    engine = make_engine()
    session = opened(engine, engine.describe(), None)
    session.forward(
        ForwardRequest(
            step=0, microbatch=0, hidden=hidden(0), cache=CacheUse(cache_id=0, past_length=0)
        )
    )
    with pytest.raises(WireError, match="does not fit"):
        session.forward(
            ForwardRequest(
                step=0,
                microbatch=1,
                hidden=hidden(0),
                cache=CacheUse(cache_id=0, past_length=5, edits=(edit,)),
            )
        )


def test_mode_and_plan_must_agree() -> None:
    engine = make_engine("frozen")
    with pytest.raises(ConfigError, match="needs an adapter plan"):
        TrunkEngine(engine.trunk, mode="shared")
    with pytest.raises(ConfigError, match=r"trunk\.adapters"):
        TrunkEngine(engine.trunk, mode="mixed")


def test_a_session_that_was_not_finished_is_broken() -> None:
    engine = make_engine()
    start = TrunkStart(tensors=engine.shared_state())
    first, second = (engine.prepare(ticket(name), start) for name in "ab")
    assert not first.is_broken
    spec = engine.describe()
    finished, left = opened(engine, spec, ticket("a")), opened(engine, spec, ticket("b"))
    assert not second.is_broken
    finished.finish()
    finished.close()
    left.close()
    assert not first.is_broken
    assert second.is_broken
    engine.discard(ticket("b"))
    assert not second.is_broken


def test_a_session_that_was_finished_is_so_until_it_is_collected() -> None:
    engine = make_engine()
    record = engine.prepare(ticket("a"), TrunkStart(tensors=engine.shared_state()))
    session = opened(engine, engine.describe(), ticket("a"))
    assert not record.is_finished
    session.finish()
    assert record.is_finished
    session.close()
    assert record.is_finished
    assert record.collect() is not None
    assert not record.is_finished


def allowance(**fields: object) -> Allowance:
    run = Scaling(r=LORA.r, alpha=LORA.alpha)
    return Allowance(scaling=run, **{"ranks": True, "alphas": True, "max_r": 8, **fields})  # type: ignore[arg-type]


def told(engine: TrunkEngine, **changes: object) -> SessionSpec:
    """A session's specification with another adapter."""
    spec = engine.describe()
    return replace(spec, adapter=json.dumps({**json.loads(spec.adapter), **changes}))


@pytest.mark.sampled(keep=4)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 10**6}, "rank must be from 1 to 65536"),
        ({"r": 9}, "silos of this run may have 8 at most"),
        ({"r": 0}, "rank must be"),
        ({"r": True}, "whole number"),
        ({"r": 2.5}, "whole number"),
        ({"alpha": float("nan")}, "alpha must be a number"),
        ({"alpha": 1e9}, "alpha 1e.09"),
        ({"alpha": -1}, "alpha must be"),
        ({"rslora": True}, "rslora True"),
        ({"dropout": 0.5}, r"adapter\.dropout"),
        ({"modules": []}, r"adapter\.modules"),
        ({"more": 1}, "further settings"),
    ],
)
def test_a_silo_cannot_have_the_trunk_make_whatever_adapter_it_wants(
    changes: dict[str, object], said: str
) -> None:
    engine = make_engine()
    engine.prepare(ticket("a"), TrunkStart(tensors=engine.shared_state(), allowance=allowance()))
    with pytest.raises(HandshakeError, match=said):
        opened(engine, told(engine, **changes), ticket("a"))
    assert adapters_at(engine) == {"master"}


def test_a_silo_of_another_rank_gets_an_adapter_of_its_own_rank() -> None:
    engine = make_engine()
    start = TrunkStart(tensors=engine.shared_state(), allowance=allowance())
    record = engine.prepare(ticket("a"), start)
    session = opened(engine, told(engine, r=5, alpha=2.0), ticket("a"))
    stepped(session, range(1), 5)
    session.finish()
    session.close()
    outcome = record.collect()
    assert outcome is not None
    assert outcome.scaling == Scaling(r=5, alpha=2.0)
    assert {min(t.shape) for t in outcome.tensors.values()} == {5}


def test_without_an_allowance_only_the_trunks_own_adapter_is_taken() -> None:
    engine = make_engine()
    with pytest.raises(HandshakeError, match=r"adapter\.r"):
        opened(engine, told(engine, r=5), None)


def with_folded_factors(engine: TrunkEngine) -> TrunkStart:
    state = engine.shared_state()
    folded = {folded_name(name): torch.ones_like(tensor) for name, tensor in state.items()}
    instructions = Instructions(scale=LORA.alpha / LORA.r)
    return TrunkStart(tensors={**state, **folded}, instructions=instructions)


def test_a_session_with_folded_factors_is_not_mixed_with_others() -> None:
    engine = make_engine(batching=BatchSettings(batching=True, gather_ms=0.0))
    engine.prepare(ticket("a"), with_folded_factors(engine))
    plain = [opened(engine, engine.describe(), None) for _ in range(2)]
    sessions = [opened(engine, engine.describe(), ticket("a")), *plain]
    request = ForwardRequest(step=0, microbatch=0, hidden=hidden(0))
    with engine.queue.exclusive():
        futures = [session.submit(request) for session in sessions]
    for future in futures:
        future.result(SECONDS)
    assert [session.finish().queue.rows_beside for session in sessions] == [0, 2, 2]


def test_a_session_with_folded_factors_leaves_nothing_behind() -> None:
    engine = make_engine()
    engine.prepare(ticket("a"), with_folded_factors(engine))
    plain = opened(engine, engine.describe(), None)
    session = opened(engine, engine.describe(), ticket("a"))
    request = ForwardRequest(step=0, microbatch=0, hidden=hidden(0))
    with_folded, without = session.forward(request), plain.forward(request)
    assert not torch.equal(with_folded, without)
    # A second session of the same folded factors costs no second copy of them.
    engine.prepare(ticket("b"), with_folded_factors(engine))
    other = opened(engine, engine.describe(), ticket("b"))
    assert sum("folded" in name for name in adapters_at(engine)) == 1
    session.close()
    again = replace(request, microbatch=1)
    assert torch.equal(other.forward(again), with_folded)
    assert torch.equal(plain.forward(again), without)
    other.close()
    plain.close()
    assert adapters_at(engine) == {"master"}
