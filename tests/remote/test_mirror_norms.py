"""Norms over a client model's gradients: the whole model's, or refused."""

import math
from typing import Any

import pytest
import torch
from pairs import backward, make_pair
from torch.nn.utils import clip_grad_norm_, get_total_norm

from flower_split import SplitAdamW
from flower_split.errors import AdapterError


def _own(model: Any) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _steps(model: Any, optimizer: Any, order: float, foreach: bool | None) -> list[float]:
    found = []
    for step in range(3):
        found.append(backward(model, step))
        bound = 1e-3 if step else 1e9
        norm = clip_grad_norm_(model.parameters(), bound, norm_type=order, foreach=foreach)
        found.append(float(norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=step == 1)
    return found


@pytest.mark.medium
@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("order", [2.0, math.inf])
def test_norms_that_the_trunk_tells_are_the_whole_models(
    order: float, foreach: bool | None
) -> None:
    pair = make_pair()
    uncut = torch.optim.AdamW(_own(pair.whole), lr=1e-2, weight_decay=0.0)
    expected = _steps(pair.whole, uncut, order, foreach)
    found = _steps(pair.client, SplitAdamW(pair.client, lr=1e-2), order, foreach)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.sampled(keep=4)
@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("order", [1.0, 3.0, 0.0, -math.inf])
def test_other_norms_are_refused(order: float, foreach: bool | None) -> None:
    pair = make_pair()
    backward(pair.client, 0)
    with pytest.raises(AdapterError, match="orders 2 and inf alone"):
        clip_grad_norm_(pair.client.parameters(), 1.0, norm_type=order, foreach=foreach)


def test_norms_by_hand_are_the_same() -> None:
    pair = make_pair()
    norms = []
    for model in (pair.client, pair.whole):
        backward(model, 0)
        grads = [p.grad for p in _own(model) if p.grad is not None]
        norms.append(
            [
                float(get_total_norm(grads)),
                float(torch.stack([g.norm() for g in grads]).norm()),
                float(torch.stack([torch.linalg.norm(g) for g in grads]).norm()),
                float(torch.stack([g.norm(p=math.inf) for g in grads]).max()),
            ]
        )
        with pytest.raises(AdapterError) if model is pair.client else torch.no_grad():
            [g.norm(p=1) for g in grads]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
