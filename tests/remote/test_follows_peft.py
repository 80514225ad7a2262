"""What PEFT does to a client model the trunk does too, or the next pass is refused by name."""

import re
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from pairs import make_batch, make_pair, take_steps
from peft import LoraConfig, PeftModel, convert_to_lora, get_peft_model
from peft.helpers import disable_input_dtype_casting, rescale_adapter_scale
from tiny_models import tiny_model

from flower_split import LocalTransport, SplitAdamW, attach_trunk, split_model
from flower_split.adapters import initial_state, load_state, resolve_lora, split_state, wrap
from flower_split.config.sections import LoraSettings
from flower_split.errors import AdapterError, ModelError
from flower_split.remote import session_spec
from flower_split.segments import layers_path
from flower_split.server.engine import TrunkEngine

Act = Callable[[Any, Any], list[float]]

train = partial(take_steps, steps=3)


@torch.no_grad()
def loss_of(model: Any) -> float:
    return model(**make_batch(seed=50)).loss.item()


def both(act: Act, mode: str = "federated") -> None:
    """`act` gives the same of a client model and of the uncut one, and leaves the same."""
    pair = make_pair(mode=mode)
    whole = [p for p in pair.whole.parameters() if p.requires_grad]
    uncut = act(pair.whole, torch.optim.AdamW(whole, lr=1e-2, weight_decay=0.0))
    cut = act(pair.client, SplitAdamW(pair.client, lr=1e-2))
    assert cut == uncut
    for model in (pair.client, pair.whole):
        model.eval()
    with torch.no_grad():
        batch = make_batch(seed=99)
        assert torch.equal(pair.client(**batch).logits, pair.whole(**batch).logits)


def disabled(model: Any, optimizer: Any) -> list[float]:
    losses = train(model, optimizer)
    with model.disable_adapter():
        losses.append(loss_of(model))
    return losses + train(model, optimizer)


def disabled_with_gradients(model: Any, optimizer: Any) -> list[float]:
    losses = train(model, optimizer)
    with model.disable_adapter():
        model.enable_input_require_grads()
        loss = model(**make_batch(seed=3)).loss
        loss.backward()
        losses.append(loss.item())
    model.disable_input_require_grads()
    optimizer.step()
    return losses + train(model, optimizer)


def rescaled(model: Any, optimizer: Any) -> list[float]:
    losses = train(model, optimizer)
    with rescale_adapter_scale(model, 0.3):
        losses += [loss_of(model), *train(model, optimizer)]
    return [*losses, loss_of(model)]


def of_no_row(model: Any, optimizer: Any) -> list[float]:
    losses = train(model, optimizer)
    model.eval()
    batch = {k: v for k, v in make_batch(seed=5).items() if k != "labels"}
    with torch.no_grad():
        for name in ("__base__", "default"):
            logits = model(**batch, adapter_names=[name] * 3).logits
            losses.append(logits.norm().item())
    model.train()
    return losses


def reference(model: Any, optimizer: Any) -> list[float]:
    """As TRL makes a reference model of an adapter that was trained before."""
    losses = train(model, optimizer)
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in list(model.named_parameters()):
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    for _ in range(2):
        model.set_adapter("ref")
        losses.append(loss_of(model))
        model.set_adapter("default")
        losses += train(model, optimizer)
    return losses


def all_frozen(model: Any, optimizer: Any) -> list[float]:
    """A pass whose gradient goes to the inputs alone changes no adapter."""
    losses = train(model, optimizer)
    own = [p for p in model.parameters() if p.requires_grad]
    for parameter in own:
        parameter.requires_grad_(False)
    embeds = model.get_input_embeddings()(make_batch()["input_ids"]).requires_grad_()
    model(inputs_embeds=embeds, labels=make_batch()["labels"]).loss.backward()
    losses.append(embeds.grad.norm().item())
    for parameter in own:
        parameter.requires_grad_(True)
    return losses + train(model, optimizer)


@pytest.mark.sampled(keep=4)
@pytest.mark.medium
@pytest.mark.parametrize(
    "act",
    [disabled, disabled_with_gradients, rescaled, of_no_row, reference, all_frozen],
    ids=lambda act: act.__name__,
)
@pytest.mark.parametrize("mode", ["federated", "shared"])
def test_the_trunk_follows(mode: str, act: Act) -> None:
    both(act, mode)


def another(model: Any, optimizer: Any) -> None:
    model.add_adapter("two", model.peft_config["default"])
    model.set_adapter("two")


def weighted(model: Any, optimizer: Any) -> None:
    train(model, optimizer)
    model.add_adapter("two", model.peft_config["default"])
    model.add_weighted_adapter(["default", "two"], [0.5, 0.5], "mixed", combination_type="linear")
    model.set_adapter("mixed")


def changed_reference(model: Any, optimizer: Any) -> None:
    reference(model, optimizer)
    model.set_adapter("ref")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ref." in name:
                parameter.add_(1.0)


def trained_reference(model: Any, optimizer: Any) -> None:
    reference(model, optimizer)
    model.set_adapter("ref")
    model(**make_batch())


def deleted(model: Any, optimizer: Any) -> None:
    model.add_adapter("two", model.peft_config["default"])
    model.delete_adapter("default")


def in_one_layer(model: Any, optimizer: Any) -> None:
    next(m for m in model.modules() if hasattr(m, "lora_A")).enable_adapters(False)


def scaled_apart(model: Any, optimizer: Any) -> None:
    next(m for m in model.modules() if hasattr(m, "lora_A")).set_scale("default", 0.5)


def by_row(model: Any, optimizer: Any) -> None:
    model.eval()
    batch = {k: v for k, v in make_batch().items() if k != "labels"}
    model(**batch, adapter_names=["__base__", "default", "default"])


def half_frozen(model: Any, optimizer: Any) -> None:
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)


def by_hand(model: Any, optimizer: Any) -> None:
    train(model, optimizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(0.9)


def another_optimizer(model: Any, optimizer: Any) -> None:
    train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2))


def narrowed(model: Any, optimizer: Any) -> None:
    model.to(torch.bfloat16)


@pytest.mark.sampled(keep=4)
@pytest.mark.parametrize(
    ("act", "words"),
    [
        (another, "adapter 'two' is active, of which the trunk has no part"),
        (weighted, "adapter 'mixed' is active"),
        (changed_reference, "adapter 'ref' was changed"),
        (trained_reference, "'ref' is active, a copy that the trunk does not train"),
        (deleted, "'two'|changed"),
        (in_one_layer, "compute with different adapters"),
        (scaled_apart, "changed by different factors"),
        (by_row, "another adapter in each row"),
        (half_frozen, "frozen or set free by requires_grad"),
        (by_hand, "were changed, and the trunk's were not"),
        (another_optimizer, "Train with SplitAdamW"),
        (narrowed, "bfloat16 now, and the session was opened with float32"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_the_trunk_cannot_follow_is_refused_by_name(act: Any, words: str) -> None:
    pair = make_pair()
    with pytest.raises((AdapterError, ModelError), match=words):
        act(pair.client, SplitAdamW(pair.client, lr=1e-2))
        pair.client(**make_batch(seed=5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: disable_input_dtype_casting(model).__enter__(), "disable_input_dtype_cast"),
        (lambda model: convert_to_lora(model, rank=2), "export the whole one"),
        (lambda model: cpu_offload(model, execution_device="cpu"), "before attach_trunk"),
        (lambda model: SplitAdamW(list(model.parameters()), lr=1e-2), "takes the client model"),
    ],
    ids=["casting", "conversion", "offloading", "parameters"],
)
def test_what_a_part_of_a_model_has_not_is_refused_by_name(call: Any, words: str) -> None:
    with pytest.raises((AdapterError, ModelError), match=words):
        call(make_pair().client)


@pytest.mark.parametrize("call", ["merge_adapter", "merge_and_unload", "unload"])
def test_merging_is_refused_before_anything_is_changed(call: str) -> None:
    pair = make_pair()
    with pytest.raises(AdapterError, match=r"cannot be merged or unloaded.*export --merge"):
        getattr(pair.client, call)()
    batch = make_batch(seed=5)
    assert pair.client(**batch).loss.item() == pair.whole(**batch).loss.item()


def test_merging_is_refused_in_a_client_that_was_wrapped_after_it_was_attached() -> None:
    pair = make_pair()
    client, _ = split_model(tiny_model(), 1, 2)
    spec = session_spec(client, plan=pair.plan, trunk_adapters="federated")
    attach_trunk(client, LocalTransport(pair.engine, spec))
    with pytest.raises(AdapterError, match="cannot be merged or unloaded"):
        wrap(client, pair.plan).merge_and_unload()


@pytest.mark.medium
def test_a_client_of_another_plan_is_refused_when_it_is_attached() -> None:
    pair = make_pair()
    spec = session_spec(pair.client, plan=pair.plan, trunk_adapters="federated")
    for settings, words in (
        (LoraConfig(r=2, lora_alpha=8, target_modules=list(pair.plan.targets)), "of r 2"),
        (LoraConfig(r=4, lora_alpha=9, target_modules=list(pair.plan.targets)), "of alpha 9"),
        (LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]), "first difference"),
    ):
        client, _ = split_model(tiny_model(), 1, 2)
        wrapped = get_peft_model(client, settings)
        with pytest.raises(AdapterError, match=words):
            attach_trunk(wrapped, LocalTransport(pair.engine, spec))


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha_pattern": {"layers.1.self_attn.q_proj": 32}},
        {"rank_pattern": {"layers.2.self_attn.q_proj": 2}},
        {"exclude_modules": ["model.layers.1.self_attn.q_proj"]},
        {"layers_to_transform": [0, 3, 4]},
    ],
)
def test_settings_of_the_trunks_layers_alone_are_refused(settings: dict[str, Any]) -> None:
    pair = make_pair()
    client, _ = split_model(tiny_model(), 1, 2)
    targets = list(pair.plan.targets)
    wrapped = get_peft_model(
        client, LoraConfig(r=4, lora_alpha=8, target_modules=targets, **settings)
    )
    spec = session_spec(client, plan=pair.plan, trunk_adapters="federated")
    with pytest.raises(AdapterError, match=r"model\.layers\.[12]\..*, which is the trunk's, has"):
        attach_trunk(wrapped, LocalTransport(pair.engine, spec))


@pytest.mark.medium
@pytest.mark.parametrize("mode", ["federated", "frozen"])
def test_a_client_that_peft_wraps_after_it_was_attached_trains_its_adapter_alone(mode: str) -> None:
    pair = make_pair(mode=mode)
    client, _ = split_model(tiny_model(), 1, 2)
    plan = None if mode == "frozen" else pair.plan
    spec = session_spec(client, plan=plan, trunk_adapters=mode)
    attach_trunk(client, LocalTransport(pair.engine, spec))
    targets = list(pair.plan.targets)
    wrapped = get_peft_model(client, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    load_state(wrapped, pair.client_state)
    before = {name: tensor.clone() for name, tensor in wrapped.named_parameters()}
    losses = take_steps(wrapped, SplitAdamW(wrapped, lr=1e-2), 3)
    assert losses == take_steps(pair.client, SplitAdamW(pair.client, lr=1e-2), 3)
    for name, tensor in wrapped.named_parameters():
        assert torch.equal(tensor, before[name]) == (".lora_" not in name), name


def test_a_client_without_an_adapter_does_not_train_one_at_the_trunk() -> None:
    pair = make_pair()
    client, _ = split_model(tiny_model(), 1, 2)
    spec = session_spec(client, plan=pair.plan, trunk_adapters="federated")
    attach_trunk(client, LocalTransport(pair.engine, spec))
    with pytest.raises(AdapterError, match="not wrapped yet"):
        client(**make_batch())


def test_a_trained_adapter_is_not_loaded_by_half() -> None:
    """`PeftModel.from_pretrained` on a client whose trunk has no adapter."""
    pair = make_pair()
    folder = tempfile.mkdtemp()
    pair.whole.save_pretrained(folder)
    client, trunk = split_model(tiny_model(), 1, 2)
    attach_trunk(client, LocalTransport(TrunkEngine(trunk)))
    loaded = PeftModel.from_pretrained(client, folder)
    with pytest.raises(AdapterError, match=re.escape("28 tensors of the trunk's layers")):
        loaded(**make_batch())


def test_a_whole_models_weights_are_not_loaded_into_a_part() -> None:
    client, trunk = split_model(tiny_model(), 1, 2)
    attach_trunk(client, LocalTransport(TrunkEngine(trunk)))
    client.load_state_dict(tiny_model().state_dict())
    with pytest.raises(AdapterError, match="would be lost"):
        client(**make_batch())


@pytest.mark.medium
def test_a_part_is_not_saved_as_the_whole(tmp_path: Any) -> None:
    pair = make_pair()
    client, _ = split_model(tiny_model(), 1, 2)
    for model in (client, pair.client.get_base_model()):
        with pytest.raises(ModelError, match="not saved as if it were the whole"):
            model.save_pretrained(tmp_path)
    pair.client.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(tiny_model(), tmp_path)


@pytest.mark.parametrize("shares", [True, False])
def test_a_client_of_a_plan_is_saved_with_the_modules_of_the_whole(
    tmp_path: Any, shares: bool
) -> None:
    """PEFT leaves out in silence what a folder's settings name no module for."""
    lora = LoraSettings(r=4, target_modules=("q_proj", "down_proj"))
    plan = resolve_lora(tiny_model(), lora)
    client, trunk = split_model(tiny_model(), 1, 2)
    state = initial_state(tiny_model(), lora, seed=1)
    own, other = split_state(state, layers_path(trunk.model), trunk.cuts)
    engine = TrunkEngine(trunk, plan=plan, initial=other, shares_adapter=shares)
    client = wrap(client, plan)
    load_state(client, own)
    spec = session_spec(client, plan=plan, trunk_adapters="federated")
    attach_trunk(client, LocalTransport(engine, spec))
    train(client, SplitAdamW(client, lr=1e-2))
    client.save_pretrained(tmp_path)
    if not shares:
        with pytest.raises(RuntimeError, match="size mismatch"):
            PeftModel.from_pretrained(tiny_model(), tmp_path)
        return
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert loss_of(loaded) == loss_of(client)


@pytest.mark.medium
def test_a_trunk_that_shares_its_adapter_gives_the_whole_of_it(tmp_path: Any) -> None:
    pair = make_pair()
    _, trunk = split_model(tiny_model(), 1, 2)
    engine = TrunkEngine(trunk, plan=pair.plan, initial=pair.trunk_state, shares_adapter=True)
    attach_trunk(pair.client, LocalTransport(engine, pair.transport.spec))
    train(pair.client, SplitAdamW(pair.client, lr=1e-2))
    whole = [p for p in pair.whole.parameters() if p.requires_grad]
    train(pair.whole, torch.optim.AdamW(whole, lr=1e-2, weight_decay=0.0))
    pair.client.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert loss_of(loaded) == loss_of(pair.whole) == loss_of(pair.client)
