"""The state of SplitAdamW that is edited at the silo alone."""

import copy
import io
from typing import Any

import pytest
import torch
from pairs import make_pair, take_steps

from flower_split import SplitAdamW
from flower_split.errors import AdapterError


def _edit(name: str) -> Any:
    def act(optimizer: Any) -> None:
        for held in optimizer.state.values():
            held[name].zero_()

    return act


def _replace(optimizer: Any) -> None:
    held = next(iter(optimizer.state.values()))
    held["exp_avg"] = torch.zeros_like(held["exp_avg"])


def _drop_one(optimizer: Any) -> None:
    optimizer.state.pop(next(iter(optimizer.state)))


@pytest.mark.parametrize(
    "act", [_edit("exp_avg"), _edit("exp_avg_sq"), _edit("step"), _replace, _drop_one]
)
def test_a_state_that_is_edited_in_place_is_refused(act: Any) -> None:
    pair = make_pair()
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    take_steps(pair.client, optimizer)
    act(optimizer)
    with pytest.raises(AdapterError, match=r"SplitAdamW's state .* changed by hand"):
        take_steps(pair.client, optimizer)
    with pytest.raises(AdapterError, match=r"SplitAdamW's state .* changed by hand"):
        optimizer.state_dict()


@pytest.mark.parametrize("drops", ["all", "one", "values"])
def test_a_saved_state_that_was_edited_is_refused(drops: str) -> None:
    pair = make_pair()
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    take_steps(pair.client, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    if drops == "all":
        state["state"] = {}
    elif drops == "one":
        state["state"].pop(0)
    else:
        state["state"][0]["exp_avg"].mul_(0.5)
    with pytest.raises(AdapterError, match="moments in this optimizer state"):
        optimizer.load_state_dict(state)
    take_steps(pair.client, optimizer)


@pytest.mark.medium
def test_a_saved_state_is_loaded_with_another_rate() -> None:
    pair = make_pair()
    whole = [p for p in pair.whole.parameters() if p.requires_grad]
    losses = []
    for model, optimizer in (
        (pair.client, SplitAdamW(pair.client, lr=1e-2)),
        (pair.whole, torch.optim.AdamW(whole, lr=1e-2, weight_decay=0.0)),
    ):
        found = take_steps(model, optimizer)
        written = io.BytesIO()
        torch.save(optimizer.state_dict(), written)
        found += take_steps(model, optimizer)
        written.seek(0)
        state = torch.load(written)
        state["param_groups"][0]["lr"] = 3e-3
        optimizer.load_state_dict(state)
        losses.append(found + take_steps(model, optimizer))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
