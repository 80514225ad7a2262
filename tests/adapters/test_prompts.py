"""Prompts: how they begin, what is refused, and how their tokens count."""

from dataclasses import replace

import pytest
import torch
from peft import CPTConfig, PeftModel, get_peft_model
from tiny_checkpoint import save_tiny_model
from tiny_models import CASE_BY_NAME, tiny_model

from flower_split.adapters import (
    initial_adapter,
    load_state,
    method_problems,
    resolve_plan,
    save_adapter,
    wrap,
)
from flower_split.adapters.plan import plan_from_fields, plan_to_fields
from flower_split.adapters.prompts import stock_call, tokens_before
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import LoraSettings, PeftSettings
from flower_split.errors import AdapterError, ConfigError
from flower_split.segments import load_skeleton, split_model
from flower_split.strategies import TrunkHost

LORA = LoraSettings()
IDS = torch.arange(3, 12)[None]


def settings(method, **options):
    return PeftSettings(type=method, options={"num_virtual_tokens": 3, **options})


def problems(**keys):
    values = {"model.name": "m", "trunk.adapters": "frozen"}
    values |= {k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()}
    with pytest.raises(ConfigError) as caught:
        read_run_config(values, check_method=method_problems)
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "peft.type P_TUNING needs peft.num-virtual-tokens"),
        ({"peft__num_virtual_tokens": 0}, "a whole number of at least 1"),
        (
            {"peft__num_virtual_tokens": 2, "trunk__adapters": "federated"},
            "set trunk.adapters to 'frozen'",
        ),
        ({"peft__num_virtual_tokens": 2, "peft__token_dim": 8}, "token-dim is set by the run"),
        (
            {"peft__num_virtual_tokens": 9, "trunk__max_message_tokens": 16500},
            "16 x (train.max-length 1024 + peft.num-virtual-tokens 9) is 16528",
        ),
        ({"peft__num_virtual_tokens": 2, "lora__r": 4}, "lora.r would not be used"),
        ({"peft__num_virtual_tokens": 2, "trunk__shares_adapter": True}, "turn it off"),
    ],
)
def test_what_does_not_fit_a_prompt_is_told(keys, said):
    assert said in problems(peft__type="p_tuning", **keys)


def test_virtual_tokens_that_leave_no_room_in_the_models_context_are_refused(tmp_path):
    folder = save_tiny_model(tmp_path)
    config = read_run_config(
        {
            "model.name": str(folder),
            "trunk.adapters": "frozen",
            "peft.type": "PROMPT_TUNING",
            "peft.num-virtual-tokens": 255,
        }
    )
    with (
        pytest.raises(ConfigError, match=r"255 leaves no place for a text in the 256 tokens"),
        TrunkHost(config),
    ):
        pass


def test_an_encoder_that_cannot_be_made_is_told():
    with pytest.raises(AdapterError, match="does not fit this llama model"):
        resolve_plan(
            tiny_model(), LORA, settings("P_TUNING", encoder_reparameterization_type="CNN")
        )


def test_embeddings_that_peft_cannot_put_before_are_told():
    model = CASE_BY_NAME["opt-projected"].model()
    with pytest.raises(
        AdapterError, match=r"virtual tokens of 32 numbers, and the embeddings .* 16"
    ):
        resolve_plan(model, LORA, settings("PROMPT_TUNING"))
    assert resolve_plan(model, LORA, settings("PREFIX_TUNING")).names == ("prompt_embeddings",)


def test_keys_that_peft_cannot_make_are_told_before_the_trunk_is_hosted(tmp_path):
    tiny_model("falcon").save_pretrained(tmp_path)
    values = {"model.name": str(tmp_path), "trunk.adapters": "frozen"}
    values |= {"peft.type": "PREFIX_TUNING", "peft.num-virtual-tokens": 2}
    told = "PEFT makes keys of 32 numbers for this falcon model, whose layers keep 1 x 8"
    with pytest.raises(AdapterError, match=told), TrunkHost(read_run_config(values)):
        pass


def test_it_may_begin_with_words(tmp_path):
    folder = save_tiny_model(tmp_path)
    options = {
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "a trunk",
        "tokenizer_name_or_path": str(folder),
    }
    skeleton = load_skeleton(str(folder))
    plan = resolve_plan(skeleton, LORA, settings("PROMPT_TUNING", **options))
    whole = type(skeleton).from_pretrained(folder)
    client, trunk = split_model(whole, 1, 1)
    found = initial_adapter(skeleton, plan, LORA, [client, trunk], seed=3)
    wrapped = get_peft_model(whole, plan.peft_config())
    theirs = wrapped.prompt_encoder["default"].embedding.weight
    assert torch.equal(found["prompt_embeddings"], theirs)
    rows = whole.get_input_embeddings().weight.detach()
    assert all((row == rows).all(-1).any() for row in theirs.detach())
    # A silo is sent its prompt: it needs neither the words nor the tokenizer.
    gone = replace(
        plan, options=tuple({**dict(plan.options), "tokenizer_name_or_path": "/none"}.items())
    )
    silo = wrap(client, gone)
    load_state(silo, found)
    assert torch.equal(silo.prompt_encoder["default"].embedding.weight, theirs)


@pytest.mark.parametrize(
    ("text", "tokenizer", "said"),
    [(" ", None, "division by zero"), ("a trunk", "/nowhere", "cannot begin .*/nowhere")],
)
def test_words_that_it_cannot_begin_with_are_told(tmp_path, text, tokenizer, said):
    folder = save_tiny_model(tmp_path)
    options = {
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": text,
        "tokenizer_name_or_path": tokenizer or str(folder),
    }
    skeleton = load_skeleton(str(folder))
    plan = resolve_plan(skeleton, LORA, settings("PROMPT_TUNING", **options))
    parts = split_model(type(skeleton).from_pretrained(folder), 1, 1)
    with pytest.raises(AdapterError, match=said):
        initial_adapter(skeleton, plan, LORA, parts, seed=3)


def test_how_it_begins_is_one_of_pefts_ways():
    init = {"peft__num_virtual_tokens": 2, "peft__prompt_tuning_init": "text"}
    told = problems(peft__type="PROMPT_TUNING", **init)
    assert "peft.prompt-tuning-init is 'text', expected one of TEXT, SAMPLE_VOCAB, RANDOM" in told


def test_an_encoder_is_exported_as_what_it_gives(tmp_path):
    plan = resolve_plan(tiny_model(), LORA, settings("P_TUNING", encoder_hidden_size=8))
    assert plan_from_fields(plan_to_fields(plan)) == plan
    model = get_peft_model(tiny_model(), plan.peft_config()).eval()
    state = {
        f"prompt_encoder.{name}": p.detach()
        for name, p in model.prompt_encoder["default"].named_parameters()
    }
    save_adapter(state, plan, tmp_path / "ours", base_model="m")
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = (
        PeftModel.from_pretrained(tiny_model(), tmp_path / name).eval()(IDS).logits
        for name in ("ours", "theirs")
    )
    assert torch.equal(ours, theirs) and torch.equal(ours, model(IDS).logits)
    configs = [(tmp_path / name / "adapter_config.json") for name in ("ours", "theirs")]
    ours, theirs = (path.read_text().replace('"m"', "null") for path in configs)
    assert ours == theirs


def test_the_stock_model_is_called_as_peft_calls_it():
    model = get_peft_model(
        tiny_model(), resolve_plan(tiny_model(), LORA, settings("PROMPT_TUNING")).peft_config()
    )
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
    call = stock_call(model, inputs)
    assert tokens_before(model) == 3
    assert call["inputs_embeds"].shape == (1, 12, 32) and call["inputs_embeds"].requires_grad
    assert call["attention_mask"].tolist() == [[1] * 12]
    assert call["labels"][0, :4].tolist() == [-100, -100, -100, 3]
    with model.disable_adapter():
        assert stock_call(model, inputs) is inputs and tokens_before(model) == 0
    assert stock_call(model.base_model, inputs) is inputs


def test_a_loss_of_its_own_is_not_left_out():
    tokens = {"cpt_token_ids": [3, 4], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 4]}
    config = CPTConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, **tokens)
    with pytest.raises(AdapterError, match="CPT computes a loss of its own"):
        stock_call(get_peft_model(tiny_model(), config), {"input_ids": IDS})
