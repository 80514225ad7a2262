import math

import pytest
import torch
from torch import nn

from flower_split.errors import StateError
from flower_split.optimization.moments import (
    check_moments,
    largest_size,
    load_moments,
    read_moments,
)


def trained(steps, *, dtype=torch.float32, start=None):
    """An AdamW over three tensors, of which the last has never had a gradient."""
    generator = torch.Generator().manual_seed(0)
    parameters = {
        name: nn.Parameter(torch.zeros(shape, dtype=dtype))
        for name, shape in (("a", (2, 3)), ("b", (4,)), ("idle", (5,)))
    }
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
    if start is not None:
        load_moments(optimizer, parameters, start)
    for _ in range(steps):
        for name in ("a", "b"):
            gradient = torch.randn(parameters[name].shape, generator=generator)
            parameters[name].grad = gradient.to(dtype)
        optimizer.step()
    return optimizer, parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_goes_on_where_another_stopped(dtype):
    first, parameters = trained(2, dtype=dtype)
    kept = read_moments(first, parameters)
    assert sum(t.nbytes for t in kept.values()) <= largest_size(parameters)
    again, others = trained(0, dtype=dtype, start=kept)
    for name, parameter in parameters.items():
        others[name].data.copy_(parameter.data)
    for optimizer, own in ((first, parameters), (again, others)):
        for name in ("a", "b", "idle"):
            own[name].grad = torch.ones_like(own[name])
        optimizer.step()
    for name in parameters:
        assert torch.equal(parameters[name], others[name]), name
    now, then = read_moments(first, parameters), read_moments(again, others)
    assert now.keys() == then.keys()
    assert all(torch.equal(now[name], then[name]) for name in now)


def test_what_was_read_does_not_change_any_more():
    optimizer, parameters = trained(1)
    kept = read_moments(optimizer, parameters)
    before = {name: tensor.clone() for name, tensor in kept.items()}
    parameters["a"].grad = torch.ones(2, 3)
    optimizer.step()
    again, own = trained(0, start=kept)
    own["a"].grad = torch.ones(2, 3)
    again.step()
    assert all(torch.equal(kept[name], before[name]) for name in kept)


def damaged(**changes):
    optimizer, parameters = trained(2)
    kept = read_moments(optimizer, parameters)
    for name, value in changes.items():
        kept[name.replace("__", "/")] = value
    return parameters, {name: value for name, value in kept.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c__step": torch.ones(())}, "1 tensors that this model does not train"),
        ({"../x": torch.ones(())}, "1 tensors that this model does not train"),
        ({"a__step": None}, "has only exp_avg, exp_avg_sq of a"),
        ({"a__exp_avg": torch.ones(3, 2)}, "expected (2, 3) torch.float32"),
        ({"a__exp_avg": torch.ones(2, 3, dtype=torch.float64)}, "expected (2, 3) torch.float32"),
        ({"a__exp_avg": torch.full((2, 3), math.nan)}, "exp_avg that are not finite"),
        ({"b__exp_avg_sq": torch.full((4,), math.inf)}, "exp_avg_sq that are not finite"),
        ({"b__exp_avg_sq": -torch.ones(4)}, "a negative second moment"),
        ({"b__step": torch.ones(1)}, "expected a float32 scalar"),
        ({"b__step": torch.tensor(3)}, "expected a float32 scalar"),
        ({"b__step": torch.tensor(0.0)}, "counts 0.0 steps"),
        ({"b__step": torch.tensor(1.5)}, "counts 1.5 steps"),
        ({"b__step": torch.tensor(1e9)}, "counts 1000000000.0 steps"),
        ({"b__step": torch.tensor(math.nan)}, "counts nan steps"),
    ],
)
def test_what_is_no_state_is_refused_and_changes_nothing(changes, message):
    parameters, kept = damaged(**changes)
    with pytest.raises(StateError) as caught:
        check_moments(parameters, kept)
    assert message in str(caught.value)
    optimizer, own = trained(1)
    before = read_moments(optimizer, own)
    with pytest.raises(StateError):
        load_moments(optimizer, own, kept)
    after = read_moments(optimizer, own)
    assert all(torch.equal(before[name], after[name]) for name in before)
