"""The client model and its cache as Python objects: compiled, copied, pickled."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from tiny_models import CASE_BY_NAME
from transformers import DynamicCache

from flower_split.adapters import resolve_lora, wrap
from flower_split.config.sections import LoraSettings
from flower_split.errors import ModelError
from flower_split.remote import SplitStages, attach_trunk, session_spec
from flower_split.segments import join, split_model
from flower_split.server.engine import TrunkEngine
from flower_split.server.local import LocalTransport

IDS = torch.arange(5, 25).reshape(2, 10)
ENDINGS = [torch.tensor([[3], [4]]), torch.tensor([[8, 9], [10, 11]]), torch.tensor([[7], [7]])]


def pair(case: str = "llama", purpose: Any = "evaluate", **engine: Any) -> tuple[Any, Any]:
    """The whole model, and a client model attached to its trunk, wrapped by PEFT."""
    model = CASE_BY_NAME[case].model()
    plan = resolve_lora(model, LoraSettings(r=2))
    client, trunk = split_model(model, 1, 1)
    wrapped = wrap(client, plan)
    spec = session_spec(wrapped, plan=plan, trunk_adapters="federated", purpose=purpose)
    attach_trunk(wrapped, LocalTransport(TrunkEngine(trunk, plan=plan, **engine), spec))
    return model, wrapped.eval()


def compiled(model: Any) -> Any:
    torch.compiler.reset()
    return torch.compile(model, backend="eager")


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_model_computes_the_same_with_a_cache_and_padding() -> None:
    whole, client = pair()
    fast = compiled(client)
    for length in (10, 7):
        mask = torch.ones_like(IDS[:, :length])
        mask[0, :3] = 0
        one = fast(IDS[:, :length], attention_mask=mask)
        other = whole(IDS[:, :length], attention_mask=mask)
        assert torch.allclose(one.logits, other.logits, atol=1e-5)
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.int64)], dim=1)
        one = fast(ENDINGS[0], attention_mask=mask, past_key_values=one.past_key_values)
        other = whole(ENDINGS[0], attention_mask=mask, past_key_values=other.past_key_values)
        assert torch.allclose(one.logits, other.logits, atol=1e-5)
    assert torch.equal(
        fast.generate(IDS, max_new_tokens=6, do_sample=False),
        whole.generate(IDS, max_new_tokens=6, do_sample=False),
    )


@pytest.mark.exhaustive
def test_a_compiled_model_trains_the_same() -> None:
    found = []
    for make in (compiled, lambda model: model):
        _, client = pair(purpose="train")
        loss = make(client)(input_ids=IDS, labels=IDS).loss
        loss.backward()
        grads = [p.grad for p in client.parameters() if p.requires_grad]
        found.append([loss.detach(), *grads])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.sampled(keep=4)
@pytest.mark.medium
@pytest.mark.parametrize(
    "take",
    [
        copy.deepcopy,
        copy.copy,
        pickle.dumps,
        lambda model: torch.save(model, io.BytesIO()),
    ],
    ids=["deepcopy", "copy", "pickle", "save"],
)
@pytest.mark.parametrize("part", ["all", "layers", "trunk"])
def test_what_belongs_to_a_session_says_that_it_cannot_be_copied(take: Any, part: str) -> None:
    _, client = pair()
    stock = client.get_base_model()
    found = {"all": client, "layers": stock.model.layers, "trunk": stock.model.layers[1]}[part]
    if take is copy.copy and part != "trunk":
        pytest.skip("a copy of the hull alone shares everything in it")
    with pytest.raises(ModelError, match=r"cannot be copied or pickled.*Copy or save it before"):
        take(found)


def test_a_joined_model_says_so_too() -> None:
    client, trunk = split_model(CASE_BY_NAME["llama"].model(), 1, 1)
    join(client, trunk)
    for take in (copy.deepcopy, pickle.dumps):
        with pytest.raises(ModelError, match="cannot be copied or pickled"):
            take(client)


@pytest.mark.medium
def test_before_it_is_attached_it_can_be_copied_and_saved() -> None:
    model = CASE_BY_NAME["llama"].model()
    client, trunk = split_model(model, 1, 1)
    file = io.BytesIO()
    torch.save(client, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    for each in (copy.deepcopy(client), saved, pickle.loads(pickle.dumps(client))):
        join(each, trunk)
        with torch.no_grad():
            assert torch.equal(each(IDS).logits, model(IDS).logits)


@pytest.mark.medium
def test_its_tensors_can_be_saved_and_given_to_another_one() -> None:
    _, one = pair(shares_adapter=True)
    _, other = pair(shares_adapter=True)
    changed = {n: t + 0.1 if "lora_" in n else t for n, t in one.state_dict().items()}
    one.load_state_dict(changed)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    with torch.no_grad():
        assert torch.equal(one(IDS).logits, other(IDS).logits)


def test_stages_are_made_of_an_attached_model_all_the_same() -> None:
    _, client = pair(purpose="train")
    SplitStages(client)


@pytest.mark.parametrize("case", ["llama", "gpt2", "falcon-alibi"])
@torch.no_grad()
def test_copies_of_a_prompts_cache_are_used_one_after_the_other(case: str) -> None:
    whole, client = pair(case)
    ours, theirs = client(IDS).past_key_values, whole(IDS).past_key_values
    for ending in ENDINGS:
        one, other = copy.deepcopy(ours), copy.deepcopy(theirs)
        for _ in range(3):
            logits = client(ending, past_key_values=one).logits
            assert torch.allclose(logits, whole(ending, past_key_values=other).logits, atol=1e-5)
    again = client(ENDINGS[1], past_key_values=ours).logits
    assert torch.allclose(again, whole(ENDINGS[1], past_key_values=theirs).logits, atol=1e-5)


@torch.no_grad()
def test_generating_from_copies_of_a_prompts_cache() -> None:
    whole, client = pair()
    ours, theirs = client(IDS).past_key_values, whole(IDS).past_key_values
    for ending in ENDINGS:
        ids = torch.cat([IDS, ending], dim=1)
        texts = [
            model.generate(
                ids, past_key_values=copy.deepcopy(cache), max_new_tokens=5, do_sample=False
            )
            for model, cache in ((client, ours), (whole, theirs))
        ]
        assert torch.equal(*texts)


@torch.no_grad()
def test_a_copy_whose_common_part_is_gone_says_so() -> None:
    _, client = pair()
    prompt = client(IDS).past_key_values
    one, two = copy.deepcopy(prompt), copy.deepcopy(prompt)
    client(ENDINGS[0], past_key_values=one)
    client(ENDINGS[1], past_key_values=two)
    with pytest.raises(ModelError, match=r"has 11 tokens, which it shares.*another copy has chang"):
        client(ENDINGS[0], past_key_values=one)
    client(ENDINGS[1], past_key_values=two)
    moved = copy.deepcopy(prompt)
    moved.reorder_cache(torch.tensor([1, 0]))
    client(ENDINGS[0], past_key_values=moved)
    with pytest.raises(ModelError, match=r"beam search.*Run the prompt again"):
        client(ENDINGS[0], past_key_values=prompt)


@torch.no_grad()
def test_a_copy_keeps_the_edits_that_were_not_sent_yet() -> None:
    whole, client = pair()
    found = []
    for model in (client, whole):
        cache = model(IDS).past_key_values
        cache.reorder_cache(torch.tensor([1, 0]))
        cache.crop(-2)
        twin = copy.deepcopy(cache)
        found.append([model(ENDINGS[0], past_key_values=twin).logits])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.medium
@torch.no_grad()
def test_a_copy_of_a_full_window_says_why_it_is_of_no_use() -> None:
    _, client = pair("mistral")
    prompt = client(IDS).past_key_values
    client(ENDINGS[0], past_key_values=copy.deepcopy(prompt))
    with pytest.raises(ModelError, match=r"with a sliding window or linear attention do not go"):
        client(ENDINGS[0], past_key_values=prompt)


@pytest.mark.parametrize("case", ["llama", "mistral"])
@torch.no_grad()
def test_a_copy_that_starts_anew_is_a_cache_of_its_own(case: str) -> None:
    whole, client = pair(case)
    prompt = client(IDS).past_key_values
    one, two = copy.deepcopy(prompt), copy.deepcopy(prompt)
    client(ENDINGS[0], past_key_values=one)
    two.reset()
    expected = whole(IDS[:, :4]).logits
    assert torch.allclose(client(IDS[:, :4], past_key_values=two).logits, expected, atol=1e-5)


@torch.no_grad()
def test_a_cache_of_another_session_and_a_pickled_one_are_refused() -> None:
    _, client = pair()
    _, other = pair()
    cache = client(IDS).past_key_values
    with pytest.raises(ModelError, match="has 10 tokens of another session"):
        other(ENDINGS[0], past_key_values=cache)
    with pytest.raises(ModelError, match="cannot be pickled"):
        pickle.dumps(cache)


def test_a_cache_is_freed_at_the_trunk_when_its_last_copy_is_gone() -> None:
    _, client = pair()
    dropped: list[int] = []
    transport = client.get_base_model().model.layers[1].transport
    drop = transport.drop_cache
    transport.drop_cache = lambda number: (dropped.append(number), drop(number))
    with torch.no_grad():
        cache = client(IDS).past_key_values
        twin = copy.deepcopy(cache)
        del cache
        client(ENDINGS[0], past_key_values=twin)
        assert dropped == []
        del twin
        client(IDS)
    assert dropped == [0]


def _rebuilt(cache: Any) -> Any:
    return DynamicCache(tuple((layer.keys, layer.values) for layer in cache.layers))


def _updated(cache: Any) -> Any:
    made = DynamicCache()
    for index, layer in enumerate(cache.layers):
        if layer.keys is not None:
            made.update(layer.keys, layer.values, index)
    return made


def _shortened(cache: Any) -> Any:
    for layer in cache.layers:
        if layer.keys is not None:
            layer.keys, layer.values = layer.keys[..., :4, :], layer.values[..., :4, :]
    return cache


def _turned(cache: Any) -> Any:
    for layer in cache.layers:
        if layer.keys is not None:
            layer.keys, layer.values = layer.keys.flip(0), layer.values.flip(0)
    return cache


def _halved(cache: Any) -> Any:
    for layer in cache.layers:
        if layer.values is not None:
            layer.values.mul_(0.5)
    return cache


@pytest.mark.sampled(keep=2)
@pytest.mark.parametrize(
    ("remake", "words"),
    [
        (_rebuilt, "has 11 tokens with this pass, and the trunk's have 0 without it"),
        (_updated, "copy a cache with copy.deepcopy"),
        (_shortened, "has 5 tokens with this pass, and the trunk's have 10"),
        (_halved, "the values in the key-value cache are others in all"),
        (_turned, "others in all of the silo's layers than when it was last used"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
@torch.no_grad()
def test_a_cache_that_was_remade_of_tensors_is_refused(remake: Any, words: str) -> None:
    _, client = pair()
    made = remake(client(IDS).past_key_values)
    with pytest.raises(ModelError, match=words):
        client(ENDINGS[0], past_key_values=made)


def test_continuous_batching_is_refused_before_it_starts() -> None:
    _, client = pair()
    with pytest.raises(ModelError, match=r"continuous batching .* use generate\(\)"):
        client.generate_batch([[5, 6], [7]])
