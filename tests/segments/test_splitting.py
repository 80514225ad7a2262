"""What each party holds after a cut: its own tensors, all of them, and nothing else's."""

import copy
import threading
from typing import Any

import pytest
import torch
from tiny_models import CASE_BY_NAME, CASES, Case
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from flower_split.errors import CutError, ModelError, UnsupportedFamilyError
from flower_split.segments import (
    Trunk,
    TrunkSlot,
    held_by_trunk,
    join,
    layers_path,
    split_model,
    split_segments,
)
from flower_split.segments.shrinking import shrunk

MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]])
IDS = torch.tensor([[3, 4, 5, 6, 7, 8, 9], [0, 0, 0, 1, 2, 3, 4]])
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.mark.sampled(keep=12)
@each_case
def test_every_tensor_is_held_once(case: Case) -> None:
    model = case.model()
    whole, path = model.state_dict(), layers_path(model)
    client, trunk = split_model(model, 1, 2)
    middle = {name for name in whole if held_by_trunk(name, path, trunk.cuts)}
    assert middle and set(trunk.model.state_dict()) == middle
    assert set(client.state_dict()) == set(whole) - middle
    bottom, other, top = split_segments(model, 1, 2)
    low, high = set(bottom.model.state_dict()), set(top.model.state_dict())
    assert set(other.model.state_dict()) == middle
    assert not low & high and low | high == set(whole) - middle
    head = next(n for n, m in model.named_modules() if m is model.get_output_embeddings())
    assert f"{head}.weight" in high
    for part in (client, trunk.model, bottom.model, top.model):
        held = part.state_dict()
        assert all(tensor.data_ptr() == whole[name].data_ptr() for name, tensor in held.items())


@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "opt-projected", "falcon-alibi"])
def test_the_stock_model_is_left_as_it_is(name: str) -> None:
    model = CASE_BY_NAME[name].model()
    names = [(name, type(module)) for name, module in model.named_modules()]
    before = model(input_ids=IDS, attention_mask=MASK).logits
    split_model(model, 1, 1)
    split_segments(model, 1, 1)
    assert [(name, type(module)) for name, module in model.named_modules()] == names
    assert torch.equal(model(input_ids=IDS, attention_mask=MASK).logits, before)


def test_a_tied_head_shares_one_tensor_of_bottom_and_top() -> None:
    bottom, _, top = split_segments(CASE_BY_NAME["llama-tied"].model(), 1, 1)
    assert bottom.model.model.embed_tokens.weight is top.model.lm_head.weight


def test_a_client_without_a_trunk_refuses_to_compute() -> None:
    client, trunk = split_model(CASE_BY_NAME["llama"].model(), 1, 1)
    slot = client.model.layers[1]
    assert isinstance(slot, TrunkSlot)
    assert (slot.cuts, slot.fingerprint) == (trunk.cuts, trunk.fingerprint)
    with pytest.raises(ModelError, match="call attach_trunk"):
        client(input_ids=IDS)


def test_stand_ins_keep_what_the_loop_reads_from_a_layer() -> None:
    model = CASE_BY_NAME["qwen2"].model()
    client, _ = split_model(model, 1, 1)
    for mine, stock in zip(client.model.layers, model.model.layers, strict=True):
        if hasattr(stock, "attention_type"):
            assert mine.attention_type == stock.attention_type


@pytest.mark.parametrize("cuts", [(4, 0), (2, 2), (-1, 0), (0, 5), (True, 0), (1.0, 1)])
def test_cuts_that_do_not_fit_are_refused(cuts: tuple[int, int]) -> None:
    with pytest.raises(CutError, match=r"bottom_layers|top_layers"):
        split_model(CASE_BY_NAME["llama"].model(), *cuts)


def test_a_tensor_beside_the_layers_is_refused() -> None:
    model = CASE_BY_NAME["llama"].model()
    model.model.register_parameter("scale", nn.Parameter(torch.ones(())))
    with pytest.raises(UnsupportedFamilyError, match="'scale'"):
        split_model(model, 1, 1)
    del model.model.scale
    model.model.register_buffer("shift", torch.ones(()))
    with pytest.raises(UnsupportedFamilyError, match="'shift'"):
        split_model(model, 1, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt-projected", "bloom"])
def test_segments_follow_a_change_of_dtype(name: str, dtype: torch.dtype) -> None:
    model = CASE_BY_NAME[name].model()
    parts = [copy.deepcopy(part).to(dtype) for part in split_segments(model, 1, 1)]
    bottom, trunk, top = parts
    whole = copy.deepcopy(model).to(dtype)(input_ids=IDS, attention_mask=MASK).logits
    hidden = bottom(IDS, attention_mask=MASK)
    assert hidden.dtype == trunk.dtype == dtype
    hidden = trunk(hidden, attention_mask=MASK)
    given = MASK.bool()
    assert torch.equal(top(hidden, attention_mask=MASK).logits[given], whole[given])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "falcon-alibi", "opt"])
def test_gradient_checkpointing_in_the_trunk_is_exact(name: str, reentrant: bool) -> None:
    model = CASE_BY_NAME[name].model(**({"dropout": 0.0} if name == "opt" else {}))
    # The reentrant kind needs an input with a gradient, which the bottom's embeddings give.
    gradients = []
    for checkpointing in (False, True):
        bottom, trunk, top = split_segments(model, 1, 1)
        if checkpointing:
            trunk.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        trunk.train()
        for module in trunk.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        counted = _count_forwards(trunk)
        h1 = bottom(IDS, attention_mask=MASK)
        h2 = trunk(h1, attention_mask=MASK)
        loss = top(h2, attention_mask=MASK, labels=IDS).loss
        parameters = [p for part in (bottom, trunk, top) for p in part.parameters()]
        model.zero_grad()
        loss.backward()
        gradients.append([p.grad.clone() for p in parameters if p.grad is not None])
        assert counted == [2 if checkpointing else 1]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def _count_forwards(trunk: Trunk) -> list[int]:
    """Counts the calls of the first linear module inside the trunk's first layer."""
    path = layers_path(trunk.model)
    layer = trunk.model.get_submodule(f"{path}.{trunk.cuts.bottom_layers}")
    norm = next(m for n, m in layer.named_modules() if "norm" in n or "ln_1" in n)
    counted = [0]

    def count(*_: object) -> None:
        counted[0] += 1

    norm.register_forward_hook(count)
    return counted


def test_calls_from_several_threads_do_not_mix() -> None:
    _, trunk = split_model(CASE_BY_NAME["llama"].model(), 1, 1)
    inputs = [torch.randn(2, 6, trunk.hidden_size) for _ in range(4)]
    expected = [trunk(hidden) for hidden in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        torch.set_num_threads(1)
        for _ in range(25):
            if not torch.equal(trunk(inputs[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_stock_model_that_skips_the_layers_is_an_error() -> None:
    _, trunk = split_model(CASE_BY_NAME["llama"].model(), 1, 1)

    class Skips(nn.Module):
        def forward(self, **call: Tensor) -> Tensor:
            return call["inputs_embeds"]

    trunk.model.model.forward = Skips().forward
    with pytest.raises(ModelError, match="without running the layers 1 … 2"):
        trunk(torch.randn(1, 3, trunk.hidden_size))


def test_outside_a_call_the_layers_compute_as_always() -> None:
    model = CASE_BY_NAME["llama"].model()
    _, trunk = split_model(model, 0, 0)
    hidden = torch.randn(1, 4, trunk.hidden_size)
    rotary = model.model.rotary_emb(hidden, torch.arange(4)[None])
    mine, stock = trunk.model.model.layers[0], model.model.layers[0]
    assert torch.equal(
        mine(hidden, position_embeddings=rotary), stock(hidden, position_embeddings=rotary)
    )


@each_case
def test_what_only_the_trunk_has_cannot_be_asked_for(case: Case) -> None:
    client, trunk = split_model(case.model(), 1, 1)
    join(client, trunk)
    for option in ("output_hidden_states", "output_attentions"):
        with pytest.raises(ModelError, match=option):
            client(input_ids=IDS, **{option: True})


@pytest.mark.parametrize(
    "given", [{"is_causal": False}, {"sequence_ids": [1]}, {"encoder_hidden_states": IDS}]
)
def test_what_would_reach_the_silos_layers_alone_cannot_be_given(given: dict[str, Any]) -> None:
    client, trunk = split_model(CASE_BY_NAME["llama"].model(), 1, 1)
    join(client, trunk)
    with pytest.raises(ModelError, match=f"{next(iter(given))} cannot be given"):
        client(input_ids=IDS, **given)


@pytest.mark.exhaustive
def test_where_packed_texts_begin_may_be_told_where_only_positions_are_read() -> None:
    packed = {
        "input_ids": torch.arange(5, 11)[None],
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]),
        "cu_seq_lens_q": torch.tensor([0, 3, 6], dtype=torch.int32),
        "seq_idx": torch.tensor([[0, 0, 0, 1, 1, 1]], dtype=torch.int32),
    }
    model = CASE_BY_NAME["llama"].model()
    client, trunk = split_model(model, 1, 1)
    join(client, trunk)
    assert torch.equal(client(**packed).logits, model(**packed).logits)
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    config = shrunk(CONFIG_MAPPING["qwen3_next"](num_hidden_layers=8, layer_types=kinds * 2))
    linear, trunk = split_model(AutoModelForCausalLM.from_config(config), 1, 1)
    join(linear, trunk)
    with pytest.raises(ModelError, match=r"cu_seq_lens_q cannot be given.*packing_strategy"):
        linear(**packed)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_router_logits_cannot_be_asked_for(name: str) -> None:
    client, trunk = split_model(CASE_BY_NAME[name].model(), 1, 1)
    join(client, trunk)
    with pytest.raises(ModelError, match="output_router_logits"):
        client(input_ids=IDS, output_router_logits=True)


def test_a_trunk_of_another_cut_cannot_be_joined() -> None:
    model = CASE_BY_NAME["llama"].model()
    client, _ = split_model(model, 1, 1)
    with pytest.raises(ModelError, match="cut both at once"):
        join(client, split_model(model, 2, 1)[1])
