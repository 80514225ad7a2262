"""What is done to the silo's half behind the trunk's back is found by its values, and refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import Pair, backward, make_batch, make_pair, take_steps
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_model
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from flower_split import LocalTransport, SplitAdamW, attach_trunk, split_model
from flower_split.adapters import fold
from flower_split.errors import AdapterError, WireError
from flower_split.lowrank import folded_name
from flower_split.remote import SplitStages, session_spec
from flower_split.remote.trunk import find_remote
from flower_split.server.engine import TrunkEngine
from flower_split.training import Accumulator
from flower_split.transport.messages import AdapterCall, AdapterReply


def own(model: Any) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def average_of_weights(model: Any, optimizer: Any) -> None:
    """As moving averages write to `.data`, which leaves no trace in a tensor's version."""
    take_steps(model, optimizer)
    for parameter in own(model):
        parameter.data.mul_(0.5)
    backward(model, 5)


def each_clipped_alone(model: Any, optimizer: Any) -> None:
    backward(model, 0)
    for parameter in model.parameters():
        if parameter.grad is not None:
            clip_grad_norm_([parameter], 1e-3)
    optimizer.step()


def the_silos_clipped_alone(model: Any, optimizer: Any) -> None:
    backward(model, 0)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and "trunk_gradient" not in name:
            parameter.grad.data.clamp_(-1e-4, 1e-4)
    optimizer.step()


def a_second_optimizer(model: Any, optimizer: Any) -> None:
    take_steps(model, optimizer)
    take_steps(model, SplitAdamW(model, lr=1e-2))


def coupled_decay(model: Any, optimizer: Any) -> None:
    optimizer.param_groups[0].update(decoupled_weight_decay=False, weight_decay=0.5)
    take_steps(model, optimizer)


def shorter_groups(model: Any, optimizer: Any) -> None:
    del optimizer.param_groups[0]["params"][0]
    take_steps(model, optimizer)


def frozen_when_it_was_made(model: Any, optimizer: Any) -> None:
    tensors = own(model)
    for tensor in tensors:
        tensor.requires_grad_(False)
    optimizer = SplitAdamW(model, lr=1e-2)
    for tensor in tensors:
        tensor.requires_grad_(True)
    take_steps(model, optimizer)


def stepped_by_another_at_the_end(model: Any, optimizer: Any) -> None:
    take_steps(model, optimizer)
    backward(model, 5)
    torch.optim.SGD(own(model), lr=0.5).step()
    find_remote(model).finish()


def clipped_between_microbatches_in_flight(model: Any, optimizer: Any) -> None:
    model.train()
    gradients = Accumulator(
        model, stages=SplitStages(model, measures=True), in_flight=2, seed=0, first_step=0
    )
    gradients.add([make_batch(seed=0), make_batch(seed=1)])
    clip_grad_norm_(model.parameters(), 1e-3)
    gradients.add([make_batch(seed=2)])


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (average_of_weights, "were changed, and the trunk's were not"),
        (each_clipped_alone, "alike and at once"),
        (the_silos_clipped_alone, "changed by hand"),
        (a_second_optimizer, "that of another SplitAdamW"),
        (coupled_decay, "no decoupled_weight_decay=False"),
        (shorter_groups, "not stepped by this SplitAdamW"),
        (frozen_when_it_was_made, "not stepped by this SplitAdamW"),
        (stepped_by_another_at_the_end, "were changed, and the trunk's were not"),
        (clipped_between_microbatches_in_flight, "after the last one of a step"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_reaches_the_silos_half_alone_is_refused(act: Any, words: str) -> None:
    pair = make_pair()
    with pytest.raises(AdapterError, match=words):
        act(pair.client, SplitAdamW(pair.client, lr=1e-2))


@pytest.mark.parametrize("bound", [1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.5])
def test_a_bound_on_elements_is_followed_also_where_one_side_alone_reaches_it(bound: float) -> None:
    pair = make_pair()
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    backward(pair.client, 0)
    clip_grad_value_(pair.client.parameters(), bound)
    optimizer.step()


@pytest.mark.medium
def test_an_optimizer_of_the_session_before_is_refused_and_its_state_loaded() -> None:
    pair = make_pair()
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    take_steps(pair.client, optimizer)
    state = optimizer.state_dict()
    attach_trunk(pair.client, LocalTransport(pair.engine, pair.transport.spec))
    with pytest.raises(AdapterError, match="steps in another session"):
        take_steps(pair.client, optimizer)
    optimizer.load_state_dict(state)
    take_steps(pair.client, optimizer)
    later = SplitAdamW(pair.client, lr=1e-2)
    later.load_state_dict(optimizer.state_dict())
    take_steps(pair.client, later)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_rslora": True}, "use_rslora=True"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"lora_dropout": 0.3}, "lora_dropout=0.3"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"modules_to_save": ["input_layernorm"]}, "modules_to_save="),
    ],
)
def test_a_client_of_other_settings_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(AdapterError, match=words):
        _of_settings(**settings)


def test_settings_of_what_the_silo_alone_has_are_its_own() -> None:
    _of_settings(modules_to_save=["lm_head"], init_lora_weights="gaussian")


def _of_settings(**settings: Any) -> None:
    pair = make_pair()
    client, _ = split_model(tiny_model(), 1, 2)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(pair.plan.targets), **settings)
    wrapped = get_peft_model(client, config)
    spec = session_spec(wrapped, plan=pair.plan, trunk_adapters="federated")
    attach_trunk(wrapped, LocalTransport(pair.engine, spec))


def _folded() -> Pair:
    pair = make_pair()
    rows = {n: t for n, t in pair.client_state.items() if "q_proj" in n}
    fold(pair.client, {folded_name(n): t for n, t in rows.items()})
    attach_trunk(pair.client, pair.transport)
    return pair


def _alone(model: Any) -> None:
    model.set_adapter("default")


def _scaled(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.set_scale("default", 0.5)


@pytest.mark.parametrize(
    ("act", "words"), [(_alone, "the trunk has no part|active together"), (_scaled, "by different")]
)
def test_what_lies_folded_beneath_is_neither_left_out_nor_left_unscaled(
    act: Callable[[Any], None], words: str
) -> None:
    pair = _folded()
    act(pair.client)
    with pytest.raises(AdapterError, match=words), torch.no_grad():
        pair.client(**make_batch())


def _with_parameters(
    *, early: bool = False, trained: frozenset[str] | None = None
) -> tuple[Pair, torch.optim.Optimizer]:
    pair = make_pair()
    spec = pair.transport.spec
    pair.transport.close()
    _, trunk = split_model(tiny_model(), 1, 2)
    engine = TrunkEngine(trunk, plan=pair.plan, initial=pair.trunk_state, shares_adapter=True)
    tensors = own(pair.client)
    transport = LocalTransport(engine, spec)
    attach_trunk(pair.client, transport, trunk_parameters=True, trained=trained)
    return pair, torch.optim.SGD(tensors if early else own(pair.client), lr=0.5)


def test_an_optimizer_without_the_trunks_parameters_is_refused() -> None:
    pair, optimizer = _with_parameters(early=True)
    with pytest.raises(AdapterError, match="make the optimizer after attach_trunk"):
        take_steps(pair.client, optimizer)


def test_weights_of_all_of_the_silos_layers_are_refused_after_their_first_step() -> None:
    pair, _ = _with_parameters()
    for parameter in pair.client.parameters():
        if parameter.shape != (3,):  # the stand-in of the trunk's gradient
            parameter.requires_grad_(True)
    with pytest.raises(AdapterError, match="in all of the silo's layers"):
        take_steps(pair.client, torch.optim.SGD(own(pair.client), lr=0.5), 2)


@pytest.mark.parametrize("parameters", [True, False])
def test_what_peft_counts_is_said_to_be_a_part(
    parameters: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = _with_parameters()[0] if parameters else make_pair()
    pair.client.print_trainable_parameters()
    said = capsys.readouterr().out
    states = (pair.state, pair.client_state, pair.trunk_state)
    counts = [sum(tensor.numel() for tensor in state.values()) for state in states]
    here, there = (counts[0], 0) if parameters else counts[1:]
    assert said.startswith(f"trainable params: {here:,d} || params of the silo's part: ")
    assert said.endswith(f"trainable params at the trunk besides: {there:,d}\n")


def test_microbatches_in_flight_do_not_leave_the_trunks_parameters_untrained() -> None:
    pair, _ = _with_parameters()
    gradients = Accumulator(
        pair.client,
        stages=SplitStages(pair.client, measures=True),
        in_flight=2,
        seed=0,
        first_step=0,
    )
    pair.client.train()
    with pytest.raises(AdapterError, match="in flight have no gradients"):
        gradients.add([make_batch(seed=0)])


@pytest.mark.medium
def test_a_factor_that_a_round_freezes_is_frozen_in_the_trunks_parameters_too() -> None:
    pair = make_pair()
    parts = frozenset(n for n in pair.client_state if "lora_B" in n)
    pair, _ = _with_parameters(trained=parts)
    remote = find_remote(pair.client)
    assert remote.own is not None
    named = remote.own.saved(keep_vars=True)
    assert {n for n, p in named.items() if p.requires_grad} == {n for n in named if "lora_B" in n}


def test_a_trunk_cannot_put_its_tensors_in_the_places_of_the_silos() -> None:
    pair = make_pair()
    held = tuple((name, tuple(tensor.shape)) for name, tensor in pair.client_state.items())
    remote = find_remote(pair.client)
    answer = pair.transport.adapter

    def hostile(call: AdapterCall) -> Any:
        future = answer(call)
        future.result()
        changed: Any = type(future)()
        changed.set_result(AdapterReply(held=held))
        return changed

    pair.transport.adapter = hostile  # type: ignore[method-assign]
    with pytest.raises(WireError, match="not in its part of the session's plan"):
        remote.adapter.saved()


@pytest.mark.medium
def test_an_optimizer_of_ones_own_adds_what_the_strategy_asks_for() -> None:
    pair = make_pair()
    called: list[bool] = []
    find_remote(pair.client).correct = lambda: called.append(True)
    take_steps(pair.client, SplitAdamW(pair.client, lr=1e-2))
    assert called == [True, True]
