"""A model behind a remote trunk trains as the uncut model does, to the bit."""

from typing import Any

import pytest
import torch
from hosting import eventually
from pairs import make_batch, make_pair

from flower_split.adapters import read_state
from flower_split.config.sections import WireConfig
from flower_split.errors import ModelError
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote import SplitAdamW

CLIPPED = OptimizerSettings(weight_decay=0.01, max_grad_norm=0.05)


def _rates(step: int) -> float:
    return 0.01 / (1 + step)


def _train_whole(model: Any, settings: OptimizerSettings, steps: int) -> list[float]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=settings.weight_decay)
    losses = []
    for step in range(steps):
        for micro in range(2):
            loss = model(**make_batch(seed=2 * step + micro), use_cache=False).loss / 2
            loss.backward()
            losses.append(float(loss))
        if settings.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.param_groups[0]["lr"] = _rates(step)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def _train_split(model: Any, steps: int) -> list[float]:
    optimizer = SplitAdamW(model, lr=0.0)
    losses = []
    for step in range(steps):
        for micro in range(2):
            loss = model(**make_batch(seed=2 * step + micro), use_cache=False).loss / 2
            loss.backward()
            losses.append(float(loss))
        optimizer.param_groups[0]["lr"] = _rates(step)
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.medium
@pytest.mark.sampled(keep=3)
@pytest.mark.parametrize("cuts", [(1, 2), (0, 0), (0, 1), (2, 0)])
@pytest.mark.parametrize("settings", [OptimizerSettings(), CLIPPED], ids=["free", "clipped"])
def test_training_equals_the_uncut_model_to_the_bit(
    cuts: tuple[int, int], settings: OptimizerSettings
) -> None:
    pair = make_pair(cuts=cuts, optimizer=settings)
    pair.client.train()
    pair.whole.train()

    assert _train_split(pair.client, 3) == _train_whole(pair.whole, settings, 3)

    after = read_state(pair.client) | pair.trained_trunk()
    expected = read_state(pair.whole)
    assert after.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(after[name], tensor), name
    assert any(not torch.equal(expected[n], pair.state[n]) for n in expected)


def test_a_frozen_trunk_equals_the_uncut_model_without_adapters_there() -> None:
    pair = make_pair(mode="frozen")
    for name, parameter in pair.whole.named_parameters():
        if "lora_" in name and any(f".layers.{i}." in name for i in (1, 2)):
            parameter.data.zero_()
            parameter.requires_grad_(False)
    assert _train_split(pair.client, 2) == _train_whole(pair.whole, OptimizerSettings(), 2)
    for name, tensor in read_state(pair.client).items():
        assert torch.equal(tensor, read_state(pair.whole)[name]), name


@pytest.mark.medium
def test_a_shared_trunk_with_one_silo_equals_a_federated_one() -> None:
    shared = make_pair(mode="shared", optimizer=CLIPPED)
    federated = make_pair(mode="federated", optimizer=CLIPPED)
    assert _train_split(shared.client, 3) == _train_split(federated.client, 3)
    for name, tensor in federated.trained_trunk().items():
        assert torch.equal(shared.engine.shared_state()[name], tensor), name


@pytest.mark.medium
def test_a_narrow_wire_is_close_and_not_equal() -> None:
    narrow = make_pair(wire=WireConfig(h1="bf16", h2="fp16", g2="bf16", g1="fp16"))
    exact = make_pair()
    low, high = _train_split(narrow.client, 2), _train_split(exact.client, 2)
    assert low != high
    assert low == pytest.approx(high, rel=1e-2)


def test_without_gradients_the_trunk_keeps_nothing() -> None:
    pair = make_pair()
    with torch.no_grad():
        ours = pair.client(**make_batch()).logits
        theirs = pair.whole(**make_batch()).logits
    assert torch.equal(ours, theirs)
    assert eventually(lambda: pair.engine.queue.budget.kept == 0)


@pytest.mark.parametrize("use_cache", [True, False])
def test_restarting_position_ids_mean_what_they_mean_to_the_uncut_model(use_cache: bool) -> None:
    pair = make_pair()
    ids = make_batch(rows=1, tokens=12)["input_ids"]
    packed = {"position_ids": torch.arange(6).repeat(2)[None], "use_cache": use_cache}
    losses = []
    for model in (pair.client, pair.whole):
        loss = model(input_ids=ids, labels=ids, **packed).loss
        loss.backward()
        losses.append(loss.detach())
    assert torch.equal(*losses)


@pytest.mark.medium
def test_a_graph_that_is_dropped_frees_the_trunk() -> None:
    pair = make_pair()
    for _ in range(20):
        loss = pair.client(**make_batch(), use_cache=False).loss
    budget, kept = pair.engine.queue.budget, make_batch()["input_ids"].numel()
    assert eventually(lambda: budget.kept == kept)
    del loss
    assert eventually(lambda: budget.kept == 0)


@torch.no_grad()
def test_a_mask_of_another_length_is_refused_with_the_one_that_fits() -> None:
    pair = make_pair()
    ids = make_batch()["input_ids"]
    rows, tokens = ids.shape
    mask = torch.ones(rows, tokens - 1, dtype=torch.long)
    with pytest.raises(ModelError, match=rf"pass one of \({rows}, {tokens}\)"):
        pair.client(input_ids=ids, attention_mask=mask, use_cache=False)
    assert pair.client(input_ids=ids, use_cache=False).logits.shape[:2] == ids.shape
