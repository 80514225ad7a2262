"""Hooks and freed weights that would be the trunk's layers' as well."""

from typing import Any

import pytest
import torch
from pairs import backward, make_pair, take_steps, take_steps_of_both
from torch import nn

from flower_split import SplitAdamW
from flower_split.errors import AdapterError, ModelError


def _layers(model: Any) -> Any:
    return model.base_model.model.model.layers


def _ignore(*_: Any) -> None:
    return None


@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize(
    "kind",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_on_the_trunks_layers_are_refused(kind: str, index: int) -> None:
    pair = make_pair()
    first, last = 1, len(_layers(pair.client)) - 3
    if (kind, index) in (("register_forward_pre_hook", first), ("register_forward_hook", last)):
        pytest.skip("what it sees is real")
    getattr(_layers(pair.client)[index], kind)(_ignore)
    with pytest.raises(ModelError, match=f"layer {index} has a hook"):
        backward(pair.client, 0)


def test_hooks_on_the_modules_of_the_trunks_layers_are_refused() -> None:
    pair = make_pair()
    _layers(pair.client)[2].self_attn.register_forward_hook(_ignore)
    with pytest.raises(ModelError, match=r"layer 2\.self_attn has a hook"):
        backward(pair.client, 0)


def test_hooks_at_the_trunks_ends_are_exact() -> None:
    pair = make_pair()
    losses = []
    for model in (pair.client, pair.whole):
        layers = _layers(model)
        last = len(layers) - 3

        def halve(_: nn.Module, inputs: Any) -> Any:
            return (inputs[0] * 0.5, *inputs[1:])

        def double(_: nn.Module, __: Any, output: Any) -> Any:
            return output * 2 if torch.is_tensor(output) else (output[0] * 2, *output[1:])

        layers[1].register_forward_pre_hook(halve)
        layers[last].register_forward_hook(double)
        layers[0].register_forward_hook(double)
        losses.append(backward(model, 0))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("part", ["norm", ""])
def test_weights_that_are_free_in_all_of_the_silos_layers_are_refused(part: str) -> None:
    pair = make_pair()
    for name, parameter in pair.client.named_parameters():
        if part in name and "trunk_gradient" not in name:
            parameter.requires_grad_(True)
    with pytest.raises(AdapterError, match="in all of the silo's layers"):
        take_steps(pair.client, SplitAdamW(pair.client, lr=1e-2), 1)


@pytest.mark.medium
@pytest.mark.parametrize("part", ["lm_head", "layers.0.", "embed_tokens", "model.norm"])
def test_other_weights_may_be_free(part: str) -> None:
    def free(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.requires_grad_(True)

    cut, whole = take_steps_of_both(make_pair(), free, 3)
    assert cut == pytest.approx(whole, abs=1e-6)
