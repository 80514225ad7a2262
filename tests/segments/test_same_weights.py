"""Further trunks on the same weights: the same outputs, and nothing of one in another."""

import pytest
import torch
from tiny_models import tiny_model
from transformers import DynamicCache

from flower_split.adapters import TrunkAdapters, resolve_lora
from flower_split.config.sections import LoraSettings
from flower_split.errors import CutError
from flower_split.segments import Cuts, load_trunk, split_model


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


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe", "falcon", "gemma3_text"])
def test_a_narrower_trunk_is_the_one_that_is_cut_so(family):
    """The same outputs to the bit, with caches too, on the weights of the wider one."""
    model = tiny_model(family).eval()
    _, wide = split_model(model, bottom_layers=1, top_layers=0)
    wide.requires_grad_(False).eval()
    ours = {parameter.data_ptr() for parameter in wide.parameters()}
    hidden = torch.randn(2, 5, wide.hidden_size)
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    with torch.no_grad():
        before = wide(hidden, attention_mask=mask)
    for bottom, top in ((1, 0), (2, 0), (1, 2), (2, 2)):
        _, cut = split_model(model, bottom_layers=bottom, top_layers=top)
        narrow = wide.narrowed(cut.eval().cuts)
        assert narrow.cuts == cut.cuts
        assert narrow.fingerprint == cut.fingerprint
        held = {name: parameter.data_ptr() for name, parameter in narrow.named_parameters()}
        assert held.keys() == dict(cut.named_parameters()).keys()
        assert set(held.values()) <= ours
        caches = [DynamicCache(config=model.config) for _ in range(2)]
        with torch.no_grad():
            for call in ({}, {"attention_mask": mask}):
                assert torch.equal(narrow(hidden, **call), cut(hidden, **call))
            found = [
                trunk(hidden, past_key_values=cache)
                for trunk, cache in zip((narrow, cut), caches, strict=True)
            ]
        assert torch.equal(*found)
        copied = narrow.with_same_weights()
        with torch.no_grad():
            assert torch.equal(copied(hidden), cut(hidden))
    with torch.no_grad():
        assert torch.equal(wide(hidden, attention_mask=mask), before)


@pytest.mark.parametrize(
    ("bottom", "top", "layers"), [(0, 1, 5), (1, 0, 5), (1, 1, 6), (1, 1, 4), (0, 0, 5)]
)
def test_a_trunk_is_not_made_wider(bottom, top, layers):
    _, trunk = split_model(tiny_model().eval(), bottom_layers=1, top_layers=1)
    with pytest.raises(CutError, match="this trunk holds the layers 1 … 3 of 5"):
        trunk.narrowed(Cuts(bottom_layers=bottom, top_layers=top, num_layers=layers))


def test_a_narrower_trunk_computes_in_the_wider_ones_dtype():
    _, trunk = split_model(tiny_model().eval(), bottom_layers=0, top_layers=1)
    trunk.eval().autocast = torch.bfloat16
    narrow = trunk.narrowed(Cuts(bottom_layers=1, top_layers=1, num_layers=5))
    assert narrow.autocast is torch.bfloat16
    assert not narrow.training


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8", "torchao-int8"])
def test_copies_of_a_quantized_trunk_compute_as_it_does(kind, tmp_path):
    """Also with the scales that bitsandbytes keeps beside a weight, of which there is one copy."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("torchao")
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    named = {"bottom_layers": 1, "top_layers": 1, "quantization": kind}
    alone = load_trunk(tmp_path, **named)
    trunk = load_trunk(tmp_path, **named).requires_grad_(False)
    hidden = torch.randn(2, 5, 64)
    with torch.no_grad():
        wanted = alone(hidden)
        copies = [trunk.with_same_weights() for _ in range(3)]
        copies.append(copies[0].with_same_weights())
        assert all(torch.equal(copy(hidden), wanted) for copy in copies)
        assert torch.equal(trunk(hidden), wanted)
        cuts = Cuts(bottom_layers=2, top_layers=1, num_layers=5)
        narrow = load_trunk(tmp_path, **{**named, "bottom_layers": 2})(hidden)
        assert all(torch.equal(one.narrowed(cuts)(hidden), narrow) for one in (trunk, copies[3]))
