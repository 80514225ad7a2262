"""What is done between cutting and attaching counts at the trunk, too, or is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import LORA, backward, make_batch, make_pair, take_steps
from peft import EvaConfig, LoraConfig, LoraGAConfig, get_peft_model, initialize_lora_eva_weights
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora.config import CordaConfig, KasaConfig, VeloraConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from tiny_models import tiny_model

from flower_split import LocalTransport, SplitAdamW, attach_trunk, split_model
from flower_split.adapters import resolve_lora, wrap
from flower_split.errors import ModelError
from flower_split.remote import session_spec
from flower_split.server.engine import TrunkEngine

Act = Callable[[Any], None]


def scale_weights(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "up_proj" in name and "lora" not in name:
            parameter.data.mul_(0.5)


def attached(change: Act, *, wrapped: bool) -> Any:
    model = tiny_model()
    plan = resolve_lora(model, LORA)
    client, trunk = split_model(model, 1, 2)
    if not wrapped:
        change(client)
    held = wrap(client, plan)
    if wrapped:
        change(held)
    spec = session_spec(held, plan=plan, trunk_adapters="shared")
    attach_trunk(held, LocalTransport(TrunkEngine(trunk, plan=plan, mode="shared"), spec))
    return held


@pytest.mark.parametrize("wrapped", [False, True])
def test_other_weights_in_all_layers_are_refused(wrapped: bool) -> None:
    with pytest.raises(ModelError, match=r"weight of mlp.up_proj was changed .* after the model"):
        attached(scale_weights, wrapped=wrapped)


def test_so_are_those_of_a_model_that_goes_from_one_session_to_the_next() -> None:
    pair = make_pair()
    scale_weights(pair.client)
    with pytest.raises(ModelError, match=r"weight of mlp\.up_proj was changed"):
        attach_trunk(pair.client, pair.transport)


def test_a_dtype_that_is_not_sent_is_refused() -> None:
    with pytest.raises(ModelError, match="weights are float64, and a trunk computes in one of"):
        attached(lambda model: model.double(), wrapped=True)


def test_a_scale_that_was_set_before_is_followed() -> None:
    pair = make_pair()
    losses = []
    for model in (pair.client, pair.whole):
        with rescale_adapter_scale(model, 0.3):
            if model is pair.client:
                attach_trunk(model, pair.transport)
            losses.append(backward(model, 0))
    assert losses[0] == losses[1]


def eva(model: Any, config: LoraConfig) -> Any:
    tuned = get_peft_model(model, config)
    batches = [make_batch(rows=1, seed=seed) for seed in range(4)]
    initialize_lora_eva_weights(tuned, batches, show_progress_bar=False)
    return tuned


def corda(model: Any, config: LoraConfig) -> Any:
    with torch.no_grad():
        preprocess_corda(model, config, run_model=lambda: model(**make_batch(rows=1)))
    return get_peft_model(model, config)


def lora_ga(model: Any, config: LoraConfig) -> Any:
    preprocess_loraga(model, config, lambda: model(**make_batch()).loss.backward())
    return get_peft_model(model, config)


@pytest.mark.sampled(keep=2)
@pytest.mark.medium
@pytest.mark.parametrize(
    ("start", "settings"),
    [
        (eva, {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.0)}),
        (corda, {"init_lora_weights": "corda", "corda_config": CordaConfig()}),
        (lora_ga, {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()}),
        (get_peft_model, {"alora_invocation_tokens": [5, 6]}),
        (get_peft_model, {"velora_config": VeloraConfig(num_groups=4)}),
        (get_peft_model, {"kasa_config": KasaConfig()}),
    ],
    ids=["eva", "corda", "lora_ga", "alora", "velora", "kasa"],
)
def test_starts_and_variants_of_lora_beside_a_frozen_trunk(
    start: Callable[[Any, LoraConfig], Any], settings: dict[str, Any]
) -> None:
    losses = []
    for is_cut in (True, False):
        model: Any = tiny_model()
        if is_cut:
            model, trunk = split_model(model, 1, 2)
            engine = TrunkEngine(trunk, mode="frozen")
            spec = session_spec(model, plan=None, trunk_adapters="frozen")
            attach_trunk(model, LocalTransport(engine, spec))
        config = LoraConfig(
            r=4,
            target_modules=["q_proj", "v_proj"],
            layers_to_transform=None if is_cut else [0, 3, 4],
            **settings,
        )
        torch.manual_seed(1)
        tuned = start(model, config)
        own = [p for p in tuned.parameters() if p.requires_grad]
        optimizer = (
            SplitAdamW(tuned, lr=1e-2)
            if is_cut
            else torch.optim.AdamW(own, lr=1e-2, weight_decay=0.0)
        )
        losses.append(take_steps(tuned, optimizer, 3))
    assert losses[0] == losses[1]


@pytest.mark.medium
def test_nothing_is_exported_of_a_part() -> None:
    pair = make_pair()
    ids = make_batch()["input_ids"]
    with pytest.raises(ModelError, match="cannot be exported or traced"):
        torch.export.export(pair.client, (), kwargs={"input_ids": ids, "use_cache": False})
    compiled = torch.compile(pair.client, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="compile it without fullgraph"):
        compiled(input_ids=ids)
