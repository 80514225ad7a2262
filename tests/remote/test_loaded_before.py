"""What was loaded under the trunk's names before a client model was attached is not lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import LORA, make_batch, make_pair
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from tiny_models import tiny_model

from flower_split.adapters import resolve_lora, wrap
from flower_split.errors import AdapterError
from flower_split.remote import attach_trunk, session_spec
from flower_split.segments import split_model
from flower_split.server.engine import TrunkEngine
from flower_split.server.local import LocalTransport


def loss_of(model: Any) -> float:
    with torch.no_grad():
        return float(model(**make_batch()).loss)


def test_a_trained_adapter_that_the_trunk_lacks_is_refused(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(tiny_model(), config).save_pretrained(tmp_path)
    client, trunk = split_model(tiny_model(), 1, 2)
    tuned = PeftModel.from_pretrained(client, tmp_path)
    with pytest.raises(
        AdapterError, match=r"layers\.1\.self_attn.*trunk has no adapter.*load_adapter"
    ):
        attach_trunk(tuned, LocalTransport(trunk))


def test_an_adapter_of_the_session_goes_to_the_trunk() -> None:
    whole, state = make_pair().whole, make_pair().state
    model = tiny_model()
    plan = resolve_lora(model, LORA)
    client, trunk = split_model(model, 1, 2)
    wrapped = wrap(client, plan)
    set_peft_model_state_dict(wrapped, state)
    spec = session_spec(wrapped, plan=plan, trunk_adapters="federated")
    engine = TrunkEngine(trunk, plan=plan, shares_adapter=True)
    attach_trunk(wrapped, LocalTransport(engine, spec))
    assert loss_of(wrapped) == loss_of(whole)


def test_of_several_adapters_it_is_not_known_which_is_the_sessions() -> None:
    model, state = tiny_model(), make_pair().state
    plan = resolve_lora(model, LORA)
    client, trunk = split_model(model, 1, 2)
    wrapped = wrap(client, plan)
    wrapped.add_adapter("other", plan.peft_config())
    set_peft_model_state_dict(wrapped, state, adapter_name="other")
    spec = session_spec(wrapped, plan=plan, trunk_adapters="federated")
    with pytest.raises(AdapterError, match="under another name"):
        attach_trunk(wrapped, LocalTransport(TrunkEngine(trunk, plan=plan), spec))


def test_weights_of_other_layers_are_no_adapter() -> None:
    model = tiny_model()
    client, trunk = split_model(model, 1, 2)
    client.load_state_dict(model.state_dict(), strict=False)
    attach_trunk(client, LocalTransport(trunk))
    assert loss_of(client) == loss_of(model)
