"""Loops that go other ways than forward, backward, step: the trunk follows, or they are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import Pair, backward, make_batch, make_pair, take_steps
from tiny_models import tiny_model

from flower_split import SplitAdamW
from flower_split.config.sections import LoraSettings
from flower_split.errors import AdapterError, ModelError
from flower_split.optimization.settings import OptimizerSettings

Act = Callable[[Any, Any], list[float]]


def two_passes_for_a_step(model: Any, optimizer: Any) -> list[float]:
    """As contrastive losses are made: one backward pass through two forward passes."""
    losses = []
    for step in range(3):
        for again in range(2):
            seed = 10 * step + again
            loss = (
                model(**make_batch(seed=seed)).loss - 0.3 * model(**make_batch(seed=seed + 5)).loss
            )
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=step == 1)
    return losses


def betas_that_come_back(model: Any, optimizer: Any) -> list[float]:
    """As schedulers that cycle the momentum set them."""
    losses = []
    for beta in (0.85, 0.9, 0.8, 0.9):
        for group in optimizer.param_groups:
            group["betas"] = (beta, 0.999)
        losses += take_steps(model, optimizer, 1)
    return losses


def hooks_of_steps(model: Any, optimizer: Any) -> list[float]:
    """They are called once a step, also where torch's own AdamW has been used before."""

    def halved(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(0.5)

    def slower(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.5

    optimizer.register_step_pre_hook(halved)
    optimizer.register_step_post_hook(slower)
    return take_steps(model, optimizer, 3)


def a_pass_without_gradients_between(model: Any, optimizer: Any) -> list[float]:
    losses = []
    for step in range(3):
        loss = model(**make_batch(seed=step)).loss
        with torch.no_grad(), model.disable_adapter():
            reference = model(**make_batch(seed=step)).loss
        (loss - reference).backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def disabled_while_it_goes_back(model: Any, optimizer: Any) -> list[float]:
    """What is frozen in a backward pass gets no gradient, whatever it was in the forward pass."""
    loss = model(**make_batch(seed=5)).loss
    with model.disable_adapter():
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return [loss.item(), *take_steps(model, optimizer)]


FOLLOWED = [
    disabled_while_it_goes_back,
    two_passes_for_a_step,
    betas_that_come_back,
    hooks_of_steps,
    a_pass_without_gradients_between,
]


def _reference(pair: Pair) -> torch.optim.AdamW:
    own = [p for p in pair.whole.parameters() if p.requires_grad]
    return torch.optim.AdamW(own, lr=1e-2, weight_decay=0.0)


def _assert_alike(act: Act, pair: Pair) -> None:
    uncut = act(pair.whole, _reference(pair))
    assert act(pair.client, SplitAdamW(pair.client, lr=1e-2)) == pytest.approx(uncut, abs=1e-6)
    for model in (pair.client, pair.whole):
        model.eval()
    with torch.no_grad():
        batch = make_batch(seed=99)
        cut, whole = pair.client(**batch).logits, pair.whole(**batch).logits
    assert float((cut - whole).abs().max()) <= 1e-6


@pytest.mark.sampled(keep=4)
@pytest.mark.medium
@pytest.mark.parametrize("act", FOLLOWED, ids=lambda act: act.__name__)
@pytest.mark.parametrize("mode", ["federated", "shared"])
def test_the_trunk_follows(mode: str, act: Act) -> None:
    _assert_alike(act, make_pair(mode=mode))


def test_a_norm_that_the_trunk_does_not_clip_by_is_refused() -> None:
    pair = make_pair()
    with pytest.raises(AdapterError, match=r"norm of 0\.5, and the trunk by 0"):
        SplitAdamW(pair.client, lr=1e-2, settings=OptimizerSettings(max_grad_norm=0.5))


def test_other_settings_than_the_sessions_are_told_to_the_trunk() -> None:
    pair = make_pair()
    optimizer = SplitAdamW(pair.client, lr=1e-2, settings=OptimizerSettings(weight_decay=0.3))
    whole = [p for p in pair.whole.parameters() if p.requires_grad]
    uncut = torch.optim.AdamW(whole, lr=1e-2, weight_decay=0.3)
    assert take_steps(pair.client, optimizer, 3) == take_steps(pair.whole, uncut, 3)


@pytest.mark.medium
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_an_adapter_of_another_name_does_not_overwrite_the_sessions(
    tmp_path: Any, low_cpu_mem_usage: bool
) -> None:
    pair = make_pair()
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    pair.client.save_pretrained(tmp_path)
    take_steps(pair.client, optimizer)
    take_steps(pair.whole, _reference(pair))
    pair.client.load_adapter(tmp_path, "two", low_cpu_mem_usage=low_cpu_mem_usage)
    with pytest.raises(AdapterError, match="under another name than 'default'"):
        backward(pair.client, 5)
    assert backward(pair.client, 5) == backward(pair.whole, 5)


def _dropouts(model: Any) -> list[torch.nn.Dropout]:
    return [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]


@pytest.mark.medium
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dropout_that_a_trainer_sets_to_zero_is_none_at_the_trunk_either(family: str) -> None:
    pair = make_pair(tiny_model(family), lora=LoraSettings(r=4, alpha=8.0, dropout=0.3))
    for model in (pair.client, pair.whole):
        model.eval()
        for module in _dropouts(model):
            module.p = 0.0
        model.train()
    cut = take_steps(pair.client, SplitAdamW(pair.client, lr=1e-2))
    assert cut == take_steps(pair.whole, _reference(pair))


@pytest.mark.parametrize("switched_off", [False, True])
def test_dropout_that_is_changed_otherwise_is_refused(switched_off: bool) -> None:
    pair = make_pair(lora=LoraSettings(r=4, alpha=8.0, dropout=0.3))
    pair.client.train()
    for module in _dropouts(pair.client)[:3]:
        if switched_off:
            module.eval()
        else:
            module.p = 0.1
    with pytest.raises(ModelError, match="dropout of 3 modules"):
        backward(pair.client, 0)
    pair.client.eval()
    backward(pair.client, 0)


def _own(model: Any) -> list[torch.nn.Parameter]:
    return [p for n, p in model.named_parameters() if "lora_" in n]


def hooks_of_tensors(model: Any, optimizer: Any) -> None:
    for parameter in _own(model):
        parameter.register_hook(lambda grad: grad.clamp(-1e-4, 1e-4))
    take_steps(model, optimizer)


def hooks_before_the_optimizers(model: Any, optimizer: Any) -> None:
    def halve(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(0.5)

    del optimizer
    for parameter in _own(model):
        parameter.register_post_accumulate_grad_hook(halve)
    take_steps(model, SplitAdamW(model, lr=1e-2))


def hooks_between_two_optimizers(model: Any, optimizer: Any) -> None:
    hooks_before_the_optimizers(model, optimizer)
    assert optimizer is not None  # and alive, with a hook of its own before those


def zeroed_by_name(model: Any, optimizer: Any) -> None:
    for step in range(2):
        backward(model, step)
        optimizer.step()
        for parameter in _own(model):
            parameter.grad = None


def a_cleared_state(model: Any, optimizer: Any) -> None:
    take_steps(model, optimizer)
    optimizer.state.clear()
    take_steps(model, optimizer)


def a_closure(model: Any, optimizer: Any) -> None:
    optimizer.step(lambda: backward(model, 0))


def two_rates(model: Any, optimizer: Any) -> None:
    extra = torch.nn.Parameter(torch.ones(1))
    optimizer.add_param_group({"params": [extra], "lr": 0.1})
    take_steps(model, optimizer)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("act", "words"),
    [
        (hooks_of_tensors, "42 of the silo's tensors have hooks"),
        (hooks_before_the_optimizers, "42 of the silo's tensors have hooks"),
        (hooks_between_two_optimizers, "42 of the silo's tensors have hooks"),
        (zeroed_by_name, "42 of the silo's tensors were zeroed"),
        (a_cleared_state, "was cleared, and the trunk's half"),
        (a_closure, "cannot evaluate a closure"),
        (two_rates, "must share one learning rate"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_reaches_the_silos_half_alone_is_refused(act: Any, words: str) -> None:
    pair = make_pair()
    with pytest.raises(AdapterError, match=words):
        act(pair.client, SplitAdamW(pair.client, lr=1e-2))


def vectorized(model: Any) -> None:
    ids = make_batch()["input_ids"]
    torch.func.vmap(lambda row: model(input_ids=row[None]).logits)(ids)


def between_positions(model: Any) -> None:
    ids = make_batch()["input_ids"]
    model(input_ids=ids, position_ids=0.5 * torch.arange(ids.shape[1])[None])


@pytest.mark.parametrize(
    ("act", "words"), [(vectorized, "torch.func cannot"), (between_positions, "whole numbers")]
)
def test_calls_that_the_trunk_cannot_have_are_refused(act: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words), torch.no_grad():
        act(make_pair().client)
