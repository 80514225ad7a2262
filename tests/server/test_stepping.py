"""No step whose result may not be finite is made, in any mode."""

import math
from typing import Any

import pytest
import torch
from pairs import make_pair
from tiny_models import tiny_model
from torch import Tensor

from flower_split import split_model
from flower_split.config.training import TrainConfig
from flower_split.errors import ConfigError, WireError
from flower_split.optimization.settings import OptimizerSettings
from flower_split.server.engine import TrunkEngine
from flower_split.server.local import LocalTransport
from flower_split.transport.messages import (
    AdapterCall,
    BackwardRequest,
    ForwardRequest,
    StepRequest,
)

HIDDEN = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(3))


def h2_of(transport: Any, *, microbatch: int, keep_graph: bool = False) -> Tensor:
    request = ForwardRequest(step=0, microbatch=microbatch, hidden=HIDDEN, keep_graph=keep_graph)
    return transport.forward(request).result()


def step_with(transport: Any, size: float) -> None:
    """A step whose g2 is of that size."""
    h2_of(transport, microbatch=0, keep_graph=True)
    grad = torch.full_like(HIDDEN, size)
    transport.backward(BackwardRequest(step=0, microbatch=0, grad=grad)).result()
    transport.step(StepRequest(step=0, learning_rate=1e-2)).result()


@pytest.mark.parametrize("mode", ["shared", "federated"])
@pytest.mark.parametrize("size", [1e25, 1e37])
def test_a_gradient_that_would_overflow_changes_nothing(mode: str, size: float) -> None:
    pair = make_pair(mode=mode)
    with pytest.raises(WireError, match=r"the step.s gradient has an element of .* nothing was"):
        step_with(pair.transport, size)
    if mode == "shared":
        state = pair.engine.shared_state()
        assert all(torch.equal(state[name], pair.trunk_state[name]) for name in state)


@pytest.mark.medium
def test_a_neighbour_computes_what_it_would_have(*, size: float = 1e37) -> None:
    def neighbour(disturbed: bool) -> Tensor:
        pair = make_pair(mode="shared")
        engine: TrunkEngine = pair.engine
        other = LocalTransport(engine, pair.transport.spec)
        if disturbed:
            with pytest.raises(WireError):
                step_with(other, size)
        step_with(pair.transport, 1.0)
        return h2_of(LocalTransport(engine, pair.transport.spec), microbatch=0)

    assert torch.equal(neighbour(disturbed=True), neighbour(disturbed=False))


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e16])
def test_what_is_written_to_the_adapter_is_bounded(value: float) -> None:
    pair = make_pair(mode="shared")
    engine = TrunkEngine(
        split_model(tiny_model(), 1, 2)[1],
        plan=pair.plan,
        mode="shared",
        initial=pair.trunk_state,
        shares_adapter=True,
    )
    transport = LocalTransport(engine, pair.transport.spec)
    tensors = [torch.full_like(tensor, value) for tensor in pair.trunk_state.values()]
    with pytest.raises(WireError):
        transport.adapter(AdapterCall(action="write", tensors=tuple(tensors))).result()
    state = engine.shared_state()
    assert all(torch.equal(state[name], pair.trunk_state[name]) for name in state)


@pytest.mark.parametrize("constants", [{"beta1": 1.0}, {"beta2": 1.0}, {"eps": 0.0}])
def test_constants_that_divide_by_nothing_are_refused(constants: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        OptimizerSettings(**constants)


@pytest.mark.medium
def test_a_step_whose_result_no_step_could_begin_with_is_taken_back() -> None:
    """Else every silo's next step of a shared trunk would be refused."""

    def left(disturbed: bool) -> list[Tensor]:
        pair = make_pair(mode="shared")
        large = {n: torch.full_like(t, 1e10 * ("lora_A" in n)) for n, t in pair.trunk_state.items()}
        pair.engine.load_shared_state(large)
        other = LocalTransport(pair.engine, pair.transport.spec)
        h2_of(other, microbatch=0, keep_graph=True)
        grad = torch.full_like(HIDDEN, 1e-3)
        other.backward(BackwardRequest(step=0, microbatch=0, grad=grad)).result()
        if disturbed:
            decay = OptimizerSettings(weight_decay=1e3)
            with pytest.raises(WireError, match=r"the stepped adapter has an element"):
                other.step(StepRequest(step=0, learning_rate=1e3, constants=decay)).result()
        other.close()
        step_with(LocalTransport(pair.engine, pair.transport.spec), 1.0)
        return [*pair.engine.shared_state().values()]

    assert all(map(torch.equal, left(disturbed=True), left(disturbed=False)))


def test_a_shared_trunk_is_stepped_at_the_runs_rate_at_most() -> None:
    train = TrainConfig(learning_rate=1e-3)
    OptimizerSettings.of_training(train).check_learning_rate(1.0)
    shared = OptimizerSettings.of_training(train, shared=True)
    shared.check_learning_rate(1e-3)
    with pytest.raises(WireError, match=r"expected 0 to 0\.001"):
        shared.check_learning_rate(1.1e-3)
