"""The adapters' method: what a run config may choose, and what is refused by an error."""

from dataclasses import replace

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, BertConfig

from flower_split.adapters import (
    TrunkAdapters,
    initial_adapter,
    method_problems,
    read_state,
    resolve_plan,
    wrap,
)
from flower_split.adapters.methods import REFUSED, method_config, method_names, working_methods
from flower_split.adapters.plan import plan_from_fields, plan_to_fields
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import LoraSettings, PeftSettings
from flower_split.errors import AdapterError, ConfigError
from flower_split.segments import split_model

LORA = LoraSettings()
ADALORA = {"peft__type": "ADALORA", "peft__total_step": 20}
TWO = {"target_modules": "q_proj, v_proj"}


def settings(method="LORA", **options):
    return PeftSettings(type=method, options=options)


def problems(**keys):
    values = {"model.name": "m"} | {
        k.replace("__", ".").replace("_", "-"): v for k, v in keys.items()
    }
    with pytest.raises(ConfigError) as caught:
        read_run_config(values, check_method=method_problems)
    return str(caught.value)


@pytest.mark.parametrize("method", sorted(REFUSED))
def test_a_refused_method_is_named_with_those_that_work(method):
    assert method in method_names()
    told = problems(peft__type=method.lower())
    assert f"peft.type {method} {REFUSED[method]}" in told
    assert ", ".join(working_methods()) in told


def test_an_unknown_method_is_named_with_those_that_work():
    told = problems(peft__type="ia4")
    assert "'IA4' is not known" in told and "IA3" in told and "VERA" in told


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"peft__type": "IA3", "peft__rank": 4}, "unknown key 'peft.rank' for peft.type IA3"),
        ({"peft__r": 4}, "peft.r has a key of its own: set lora.r"),
        ({"peft__loftq_config": "{}"}, "unknown key 'peft.loftq-config' for peft.type LORA"),
        ({"peft__target_parameters": "x"}, "unknown key 'peft.target-parameters'"),
        ({"peft__task_type": "SEQ_CLS"}, "peft.task-type is set by the run itself"),
        ({"peft__type": "VERA", "peft__r": "many"}, "peft.r must be a whole number, not 'many'"),
        ({"peft__type": "VERA", "peft__r": -1}, "PEFT refuses|r"),
        ({"peft__use_dora": 1}, "peft.use-dora must be true or false, not 1"),
        ({"peft__rank_pattern": "{q: 4}"}, "peft.rank-pattern must be text with a JSON object"),
        ({"peft__init_lora_weights": "eva"}, "'eva' needs data"),
        ({"peft__init_lora_weights": "pissa_niter_4"}, "use one of"),
        ({"peft__bias": "lora_only"}, "set trunk.adapters to 'frozen'"),
        ({"peft__type": "OFT", "lora__r": 4}, "lora.r would not be used with peft.type OFT"),
        ({"peft__use_dora": True, "lora__ranks": "4,8"}, "lora.ranks and lora.alphas"),
        ({"peft__type": "ADALORA"}, "peft.total-step is missing"),
        ({"peft__type": "ADALORA", "peft__r": 4}, "unknown key 'peft.r' for peft.type ADALORA"),
        (ADALORA | {"peft__target_r": 12}, "leaves nothing to allocate of peft.init-r 12"),
        (ADALORA | {"peft__target_r": 0}, "peft.target-r is 0, expected at least 1"),
        (ADALORA | {"peft__deltaT": 0}, "peft.deltaT is 0, expected at least 1"),
        (ADALORA | {"peft__beta1": 1.0}, "peft.beta1 is 1.0, expected between 0 and 1"),
        (ADALORA | {"peft__tinit": 20}, "PEFT refuses"),
        (
            ADALORA | {"peft__tfinal": 5, "train__local_steps": 5, "num_server_rounds": 4},
            "peft.tfinal 5 is step 15, the first of round 4",
        ),
        (ADALORA | {"peft__orth_reg_weight": -1.0}, "PEFT refuses"),
        (ADALORA | {"trunk__adapters": "shared"}, "has one adapter for all"),
        (
            {
                "peft__type": "P_TUNING",
                "model__task": "token-classification",
                "model__labels": "a,b",
            },
            "peft.type P_TUNING puts a prompt before causal language models",
        ),
        (ADALORA | {"trunk__shares_adapter": True}, "trunk.shares-adapter is for plain LoRA"),
    ],
)
def test_what_a_method_does_not_take_is_told_at_once(keys, said):
    if keys == {"peft__type": "VERA", "peft__r": -1}:
        with pytest.raises((ConfigError, AdapterError), match="VERA"):
            resolve_plan(tiny_model(layers=3), LORA, settings("VERA", r=-1, **TWO))
        return
    assert said in problems(**keys)


def test_adaloras_schedule_is_that_of_the_run_where_its_steps_are_known():
    keys = {"model.name": "m", "num-server-rounds": 5, "peft.type": "adalora"}
    run = read_run_config(keys | {"train.local-steps": 4}, check_method=method_problems)
    assert method_config(run.lora, run.peft).total_step == 20
    given = keys | {"train.local-steps": 4, "peft.total-step": 30}
    run = read_run_config(given, check_method=method_problems)
    assert method_config(run.lora, run.peft).total_step == 30
    plain = read_run_config(keys | {"train.local-steps": 4, "peft.type": "LORA"})
    assert plain.peft.is_plain


def test_values_get_the_types_of_pefts_config():
    made = method_config(
        LoraSettings(target_modules=("q_proj", "v_proj")),
        settings(
            rank_pattern='{"q_proj": 2}',
            layers_to_transform="1, 2",
            modules_to_save="lm_head",
            use_dora=True,
        ),
    )
    assert made.rank_pattern == {"q_proj": 2} and made.layers_to_transform == [1, 2]
    assert made.modules_to_save == ["lm_head"] and made.use_dora is True
    made = method_config(LORA, settings("DELORA", delora_lambda=2, layers_to_transform=1))
    assert made.delora_lambda == 2 and made.layers_to_transform == 1
    made = method_config(LORA, settings("LOHA", target_modules=r".*\.(q|v)_proj"))
    assert made.target_modules == r".*\.(q|v)_proj"
    made = method_config(LORA, settings("LOHA", target_modules="all-linear"))
    assert made.target_modules == "all-linear"


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (settings("LOHA", target_modules="q_proj, w_proj"), "'w_proj', which this llama"),
        (settings("LN_TUNING", target_modules="nothing"), "'nothing'"),
        (settings("BOFT", boft_block_size=7, **TWO), "does not fit this llama model"),
        (settings(rank_pattern='{"w_proj": 2}'), "w_proj"),
        (settings("TRAINABLE_TOKENS", token_indices="5, 1000"), "does not fit this llama model"),
    ],
)
def test_what_does_not_fit_the_model_is_told(chosen, said):
    with pytest.raises(AdapterError, match=said):
        resolve_plan(tiny_model(layers=3), LORA, chosen)


@pytest.mark.parametrize("method", ["LILY", "UNILORA", "SHIRA", "FROD"])
def test_the_reason_of_a_refusal_is_what_resolving_finds(monkeypatch, method):
    """Were it not refused by name, the plan would be."""
    monkeypatch.setattr(
        "flower_split.adapters.methods.REFUSED", {n: r for n, r in REFUSED.items() if n != method}
    )
    small = {"r": 4} if method == "SHIRA" else {}
    with pytest.raises(AdapterError):
        resolve_plan(tiny_model(layers=3), LORA, settings(method, **TWO, **small))


def test_a_plan_is_the_same_from_its_fields_and_on_both_sides():
    model = tiny_model(layers=4)
    plan = resolve_plan(model, LORA, settings("VERA", r=8, **TWO))
    again = plan_from_fields(plan_to_fields(plan))
    assert again.shapes == plan.shapes and again.peft_config() == plan.peft_config()
    assert resolve_plan(model, LORA, settings("VERA", r=8, **TWO)).json == plan.json
    other = resolve_plan(model, LORA, settings("VERA", r=8, projection_prng_key=1, **TWO))
    assert other.json != plan.json


@pytest.mark.medium
def test_rows_are_trained_beside_whole_modules():
    chosen = {"modules_to_save": "lm_head, input_layernorm", "trainable_token_indices": "5, 7"}
    plan = resolve_plan(tiny_model(), LORA, settings(**chosen))
    client, trunk = split_model(tiny_model(), 1, 2)
    parts = [read_state(wrap(part, plan)) for part in (client, trunk.model)]
    assert sorted([*parts[0], *parts[1]]) == sorted(plan.names)
    assert any("trainable_tokens_delta" in name for name in parts[0])


@pytest.mark.medium
def test_a_family_for_which_peft_names_no_targets_is_told_the_key():
    bert = BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, is_decoder=True)
    model = AutoModelForCausalLM.from_config(bert)
    with pytest.raises(AdapterError, match=r"the key peft\.target-modules"):
        resolve_plan(model, LORA, settings("LN_TUNING"))


def test_what_fails_on_a_part_alone_is_told():
    plan = resolve_plan(tiny_model(), LORA, settings(init_lora_weights=True))
    broken = replace(plan, options=(("init_lora_weights", "by hand"),))
    with pytest.raises(AdapterError, match=r"PEFT fails on this part of the model.*by hand"):
        wrap(split_model(tiny_model(), 1, 2)[0], broken)


def test_the_start_is_pefts_own_and_the_random_state_is_kept():
    model = tiny_model(layers=3)
    plan = resolve_plan(model, LORA, settings("LOKR", r=4, **TWO))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    state = initial_adapter(model, plan, LORA, [model], seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    model = tiny_model(layers=3)
    torch.manual_seed(7)
    wanted = get_peft_model_state_dict(get_peft_model(model, plan.peft_config()))
    assert list(state) == list(wanted)
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_client_with_weights_of_its_own_leaves_those_of_others_as_they_are(init):
    model = tiny_model(layers=3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plan = resolve_plan(model, LORA, settings(init_lora_weights=init))
    client, trunk = split_model(model, 1, 1)
    initial_adapter(model, plan, LORA, [client, trunk.model], seed=0)
    wrapped, other = wrap(client, plan), wrap(trunk.model, plan)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    changed = wrapped.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.base_layer")
    assert not torch.equal(changed.weight, before["model.layers.0.self_attn.q_proj.weight"])
    changed = other.get_submodule("base_model.model.model.layers.1.self_attn.q_proj.base_layer")
    assert not torch.equal(changed.weight, before["model.layers.1.self_attn.q_proj.weight"])


def test_a_party_whose_projections_differ_is_refused():
    model = tiny_model(layers=4)
    chosen = settings("VERA", r=8, target_modules="q_proj, lm_head")
    plan = resolve_plan(model, LORA, chosen)
    client, trunk = split_model(model, 1, 1)
    wrap(client, plan)
    with pytest.raises(AdapterError, match="whose largest sizes are the same on both sides"):
        wrap(trunk.model, plan, "master")


def test_pissa_is_refused_where_two_modules_have_one_weight():
    model = tiny_model(layers=3)
    model.lm_head.weight = model.model.embed_tokens.weight
    lora = LoraSettings(target_modules=("q_proj", "lm_head"))
    with pytest.raises(AdapterError, match=r"lm_head, which is also that of model\.embed_tokens"):
        resolve_plan(model, lora, settings(init_lora_weights="pissa"))


def test_a_trunk_with_sessions_does_not_train_biases():
    model = tiny_model(layers=3)
    plan = resolve_plan(model, LORA, settings(bias="lora_only"))
    _, trunk = split_model(model, 1, 1)
    with pytest.raises(AdapterError, match=r"trunk\.adapters to 'frozen'"):
        TrunkAdapters(trunk, plan)
