"""What one stage cannot do: the others have not done it either, as where one trunk failed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from asking import Asking, opened
from cut_training import HIDDEN, tensor
from sessions_alike import plain, same, start_of
from tiny_models import tiny_model

from flower_split.adapters import resolve_lora
from flower_split.config.sections import LoraSettings
from flower_split.errors import AdapterError, SequenceError, TrunkBusyError, TrunkError, WireError
from flower_split.segments import split_model
from flower_split.server.compute.batch import TrunkComputer
from flower_split.server.engine import TrunkEngine
from flower_split.server.stages.engine_settings import EngineSettings
from flower_split.server.stages.local_chain import local_chain
from flower_split.server.stepping import AdapterSlot
from flower_split.transport.messages import (
    AdapterCall,
    BackwardRequest,
    CacheUse,
    Finish,
    ForwardRequest,
    Request,
    SessionLimits,
    StepRequest,
)

LAYERS = 4
"""Of the model; the trunk holds two, and a chain has a stage for each."""
LORA = LoraSettings(r=2, alpha=4.0, dropout=0.1)


def session_of(*, stages: bool, mode: str = "federated", **options: Any) -> Asking:
    """A session that begins from the same on a chain and on one trunk."""
    model = tiny_model(layers=LAYERS, hidden_size=HIDDEN)
    plan = resolve_lora(model, LORA)
    options |= {"plan": plan, "mode": mode, "shares_adapter": True}
    engine: Any
    if stages:
        trunks = [split_model(model, first, LAYERS - first - 1)[1] for first in (1, 2)]
        engine = local_chain(trunks, EngineSettings(**options))
    else:
        engine = TrunkEngine(split_model(model, 1, 1)[1], **options)
    engine.load_shared_state(start_of(engine))
    return opened(engine, engine.describe(), None)


def forward(number: int, step: int = 0, **fields: Any) -> ForwardRequest:
    fields = {"keep_graph": True, "dropout": True, **fields}
    return ForwardRequest(step=step, microbatch=number, hidden=tensor(number), **fields)


def backward(number: int, step: int = 0) -> BackwardRequest:
    return BackwardRequest(step=step, microbatch=number, grad=tensor(500 + number))


def step(number: int = 0, **fields: Any) -> StepRequest:
    return StepRequest(step=number, learning_rate=0.01, norms_before=(0.25,), **fields)


def yields(session: Asking, script: list[Request]) -> list[Any]:
    """Every answer, or the kind of error."""
    answers = list[Any]()
    for request in script:
        try:
            answers.append(plain(session.ask(request)))
        except TrunkError as error:
            answers.append(type(error).__name__)
        if isinstance(request, Finish) and isinstance(answers[-1], dict):
            del answers[-1]["queue"]
    session.close()
    return answers


READ = AdapterCall(action="read")
END: list[Request] = [READ, forward(9, 1), backward(9, 1), step(1), READ, Finish()]


def failing(of: type, name: str, layer: int, error: TrunkError, *, at: int) -> Callable[..., Any]:
    """`of.name`, which fails at its `at`-th call where the layer is held."""
    genuine, calls = getattr(of, name), iter(range(1, 1000))

    def called(self: Any, *arguments: Any, **named: Any) -> Any:
        slot = self if isinstance(self, AdapterSlot) else arguments[0][0].session.slot
        if any(f".layers.{layer}." in name for name, _ in slot.held) and next(calls) == at:
            raise error
        return genuine(self, *arguments, **named)

    return called


def compared(
    monkeypatch: pytest.MonkeyPatch, of: type, name: str, layer: int, error: TrunkError, script: Any
) -> list[Any]:
    """What a chain yields whose stage fails, and one trunk that fails as well."""
    made = []
    for stages in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(of, name, failing(of, name, layer, error, at=2))
            made.append(yields(session_of(stages=stages), script))
    assert type(error).__name__ in made[0]
    return made


def test_a_microbatch_that_is_refused_may_come_again() -> None:
    script = [
        *map(forward, (0, 1, 2, 2)),
        *map(backward, (2, 0)),
        *map(forward, (2, 2)),
        *map(backward, (1, 2)),
        step(),
        *END,
    ]
    limits = SessionLimits(max_in_flight=2)
    parts, whole = (yields(session_of(stages=s, limits=limits), script) for s in (True, False))
    assert same(parts, whole)
    assert parts.count("TrunkBusyError") == 2 and parts.count("SequenceError") == 2


@pytest.mark.medium
@pytest.mark.parametrize("layer", [1, 2])
def test_a_forward_pass_that_one_stage_cannot_make_is_made_by_none(
    layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [*map(forward, (0, 1, 1)), *map(backward, (0, 1)), step(), *END]
    error = TrunkBusyError("no room")
    parts, whole = compared(monkeypatch, TrunkComputer, "forward", layer, error, script)
    assert same(parts, whole)


def test_a_backward_pass_that_the_last_stage_cannot_make_may_be_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = [*map(forward, (0, 1)), *map(backward, (0, 1, 1)), step(), *END]
    error = TrunkBusyError("no room")
    parts, whole = compared(monkeypatch, TrunkComputer, "backward", 2, error, script)
    assert same(parts, whole)


@pytest.mark.medium
@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("mode", ["federated", "shared"])
def test_a_step_that_one_stage_cannot_take_may_be_taken_again(
    mode: str, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"scale": 2.0, "clip": 1e-3}
    script = [
        *(forward(0), backward(0), step(), forward(1, 1), forward(2, 1), backward(1, 1)),
        *(step(1, **small), READ, backward(2, 1), step(1, **small), READ),
        *(forward(3, 2), backward(3, 2), step(2), READ, Finish()),
    ]
    made = []
    for stages in (True, False):
        with monkeypatch.context() as patch:
            error = WireError("beyond what the next step may begin with")
            patch.setattr(AdapterSlot, "step", failing(AdapterSlot, "step", layer, error, at=2))
            made.append(yields(session_of(stages=stages, mode=mode), script))
    assert made[0].count("WireError") == 1 and same(*made)


def test_a_step_that_fails_at_once_after_another_takes_back_itself_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = [forward(0), backward(0), step(), READ, step(1), READ, step(1), READ, Finish()]
    parts, whole = compared(monkeypatch, AdapterSlot, "step", 2, WireError("cannot"), script)
    assert parts[4] == "WireError" and same(parts[3], parts[5]) and same(parts, whole)


def test_a_failed_step_leaves_the_gradient_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, taken = [forward(0), backward(0)], [step(scale=4.0, clip=1e-3), READ]
    once = yields(session_of(stages=False), begun + taken)
    monkeypatch.setattr(
        AdapterSlot, "step", failing(AdapterSlot, "step", 1, WireError("not this time"), at=1)
    )
    twice = yields(session_of(stages=False), [*begun, taken[0], *taken])
    assert twice.pop(2) == "WireError" and same(once, twice)


@pytest.mark.parametrize(
    ("name", "layer", "script"),
    [
        ("backward", 1, [*map(forward, (0, 1)), *map(backward, (0, 1)), backward(1), step()]),
        (
            "forward",
            2,
            [
                forward(0, keep_graph=False, cache=CacheUse(cache_id=1, past_length=past))
                if not past
                else forward(1, keep_graph=False, cache=CacheUse(cache_id=1, past_length=past))
                for past in (0, 5, 5)
            ],
        ),
    ],
)
def test_what_cannot_be_taken_back_is_followed_by_nothing(
    name: str, layer: int, script: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = TrunkBusyError("no room")
    monkeypatch.setattr(TrunkComputer, name, failing(TrunkComputer, name, layer, error, at=2))
    session = session_of(stages=True)
    made = yields(session, [*script, Finish()])
    after = made[made.index("TrunkBusyError") + 1 :]
    assert after and set(after) == {SequenceError.__name__}
    assert session.engine.loads == (0,)
    assert torch.is_tensor(made[0])


def test_an_adapter_that_does_not_fit_one_stage_is_loaded_at_none() -> None:
    left = list[Any]()
    for stages in (False, True):
        engine = session_of(stages=stages, mode="shared").engine
        before = start_of(engine)
        engine.load_shared_state(before)
        wrong = {n: t[:1] if ".layers.2." in n else t + 1 for n, t in before.items()}
        for state in (wrong, {**before, "odd": tensor(0)}, dict([*before.items()][:-1]), {}):
            with pytest.raises(AdapterError) as caught:
                engine.load_shared_state(state)
            left.append(str(caught.value))
            assert same(engine.shared_state(), before)
    assert left[:4] == left[4:]
