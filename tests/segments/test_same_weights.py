"""Further trunks on the same weights: the same outputs, and nothing of one in another."""

import pytest
import torch
from tiny_models import tiny_model

from flower_split.adapters import TrunkAdapters, resolve_lora
from flower_split.config.sections import LoraSettings
from flower_split.segments import split_model


@pytest.mark.parametrize(
    ("family", "module"), [("llama", "q_proj"), ("gpt2", "c_attn"), ("qwen3_moe", "q_proj")]
)
def test_a_copy_computes_the_same_on_the_same_weights(family, module):
    model = tiny_model(family).eval()
    plan = resolve_lora(model, LoraSettings(r=2, target_modules=(module,)))
    _, trunk = split_model(model, bottom_layers=1, top_layers=1)
    trunk.requires_grad_(False)
    copies = [trunk.with_same_weights() for _ in range(2)]
    ours = {name: parameter.data_ptr() for name, parameter in trunk.named_parameters()}
    names = set(ours)
    for copy in copies:
        theirs = {name: parameter.data_ptr() for name, parameter in copy.named_parameters()}
        assert theirs == ours
    adapters = TrunkAdapters(copies[0], plan)
    for parameter in adapters.named_parameters("master").values():
        torch.nn.init.ones_(parameter)
    hidden = torch.randn(2, 5, trunk.hidden_size)
    with torch.no_grad():
        plain, adapted, other = trunk(hidden), copies[0](hidden), copies[1](hidden)
    assert torch.equal(plain, other)
    assert not torch.equal(plain, adapted)
    assert {name for name, _ in trunk.named_parameters()} == names
