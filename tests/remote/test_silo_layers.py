"""What is done to all of the silo's layers is refused: the trunk's layers stay as they were."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import backward, make_pair, take_steps_of_both
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

from flower_split.errors import ModelError


def _named(model: Any, ending: str) -> list[nn.Module]:
    return [module for name, module in list(model.named_modules()) if name.endswith(ending)]


class _Half(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 0.5


def _scaled(model: Any) -> None:
    for module in _named(model, "q_proj.base_layer"):
        module.weight.data.mul_(0.5)


def _replaced_values(model: Any) -> None:
    for module in _named(model, "q_proj.base_layer"):
        module.weight.data = module.weight.data * 0.5


def _pruned(model: Any) -> None:
    for module in _named(model, "q_proj.base_layer"):
        prune.l1_unstructured(module, "weight", 0.3)


def _parametrized(model: Any) -> None:
    for module in _named(model, "q_proj.base_layer"):
        parametrize.register_parametrization(module, "weight", _Half())


def _other_modules(model: Any) -> None:
    for module in _named(model, ".mlp"):
        module.act_fn = nn.ReLU()


def _other_functions(model: Any) -> None:
    for module in _named(model, ".mlp"):
        if hasattr(module, "up_proj"):
            module.forward = lambda hidden: hidden


def _other_factors(model: Any) -> None:
    for module in _named(model, ".self_attn"):
        if hasattr(module, "scaling"):
            module.scaling = 2 * module.scaling


def _hooked(model: Any) -> None:
    for module in _named(model, "q_proj"):
        module.register_forward_hook(lambda _, __, output: output * 2)


def _hooked_within(model: Any) -> None:
    for module in _named(model, "q_proj.base_layer"):
        module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))


def _hooked_beside(model: Any) -> None:
    for module in _named(model, "lora_B.default"):
        module.register_forward_hook(lambda _, __, output: output * 2)


def _other_functions_beside(model: Any) -> None:
    for module in _named(model, "q_proj"):
        module.forward = lambda hidden: hidden


def _other_settings_beside(model: Any) -> None:
    for module in _named(model, "q_proj"):
        module.cast_input_dtype_enabled = False


def _other_frequencies(model: Any) -> None:
    _named(model, "rotary_emb")[0].inv_freq.mul_(2)


def _other_parameters(model: Any) -> None:
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach(), parameter.requires_grad))


def _other_layers(model: Any) -> None:
    inner = model.base_model.model.model
    inner.layers = nn.ModuleList([*inner.layers[:4], inner.layers[3]])


def _other_config(model: Any) -> None:
    model.config.sliding_window = 3


@pytest.mark.sampled(keep=6)
@pytest.mark.medium
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_scaled, "weight of self_attn.q_proj was changed in all of the silo's layers"),
        (_replaced_values, "weight of self_attn.q_proj"),
        (_pruned, "weight of self_attn.q_proj"),
        (_parametrized, "the class of self_attn.q_proj"),
        (_other_modules, "the module act_fn of mlp"),
        (_other_functions, "the method forward of mlp"),
        (_other_factors, "scaling of self_attn"),
        (_hooked, r"a hook \(forward_hooks\) on q_proj of self_attn"),
        (_hooked_within, r"a hook \(forward_pre_hooks\) of self_attn.q_proj"),
        (_hooked_beside, r"a hook \(forward_hooks\) of the adapter of self_attn.q_proj.lora_B"),
        (_other_functions_beside, "the method forward of the adapter of self_attn.q_proj"),
        (_other_settings_beside, "cast_input_dtype_enabled of the adapter of self_attn.q_proj"),
        (_other_frequencies, "inv_freq of .*rotary_emb was changed, and the trunk has its own"),
        (_other_parameters, "parameters of the client model were replaced .* fully_shard"),
        (_other_layers, "the list of the client model's layers was replaced"),
        (_other_config, "sliding_window of the client model's config was changed"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_done_to_all_layers_is_refused(change: Callable[[Any], None], words: str) -> None:
    pair = make_pair()
    backward(pair.client, 0)
    change(pair.client)
    with pytest.raises(ModelError, match=words):
        backward(pair.client, 1)


def test_hooks_of_all_modules_are_refused() -> None:
    pair = make_pair()
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(ModelError, match="hooks of all modules"):
            backward(pair.client, 0)
    finally:
        hook.remove()
    backward(pair.client, 0)


def _in_one(model: Any) -> None:
    first = next(m for n, m in model.named_modules() if n.endswith("layers.0.mlp"))
    first.act_fn = nn.ReLU()
    first.down_proj.lora_B.default.register_forward_hook(lambda _, __, output: output * 2)
    first.register_forward_hook(lambda _, __, output: output * 2)
    prune.l1_unstructured(first.up_proj.base_layer, "weight", 0.3)


@pytest.mark.medium
def test_single_layers_may_be_changed() -> None:
    cut, whole = take_steps_of_both(make_pair(), _in_one, 3)
    assert cut == pytest.approx(whole, abs=1e-6)


@pytest.mark.exhaustive
def test_a_base_model_with_a_buffer_of_its_own_may_be_hooked_and_resized() -> None:
    config = GPTBigCodeConfig(vocab_size=97, n_embd=32, n_layer=4, n_head=4, n_positions=64)
    pair = make_pair(GPTBigCodeForCausalLM(config).eval(), cuts=(1, 1))
    losses = []
    for model in (pair.client, pair.whole):
        model.get_base_model().transformer.register_forward_hook(lambda *_: None)
        torch.manual_seed(0)
        model.resize_token_embeddings(103)
        losses.append(backward(model, 0))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_training_mode_checkpoints_and_attention_of_another_kind_are_no_changes() -> None:
    pair = make_pair()
    losses = []
    for model in (pair.client, pair.whole):
        backward(model, 0)
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.set_attn_implementation("eager")
        model.config.pad_token_id = 5
        losses.append(backward(model, 1))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
