"""A client that PEFT wrapped with other settings than the session's plan is not attached."""

from dataclasses import replace
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_model

from flower_split import LocalTransport, attach_trunk, session_spec, split_model
from flower_split.adapters import resolve_plan, wrap
from flower_split.config.sections import LoraSettings, PeftSettings
from flower_split.errors import AdapterError
from flower_split.server.engine import TrunkEngine

TWO = {"target_modules": "q_proj, v_proj"}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("LOHA", {"r": 2, "alpha": 4}, {"alpha": 8}),
    ("LOKR", {"r": 2, "alpha": 4}, {"module_dropout": 0.5}),
    ("VERA", {"r": 4}, {"projection_prng_key": 7}),
    ("OFT", {"r": 2, "oft_block_size": 0}, {"coft": True}),
    ("FOURIERFT", {"n_frequency": 10}, {"scaling": 3.0}),
    ("IA3", {}, {}),
]


@pytest.mark.parametrize(("method", "options", "changed"), CASES, ids=[case[0] for case in CASES])
def test_every_setting_of_another_method_is_compared(
    method: str, options: dict[str, Any], changed: dict[str, Any]
) -> None:
    model = tiny_model()
    targets = {} if method == "IA3" else TWO
    settings = PeftSettings(type=method, options=options | targets)
    plan = resolve_plan(model, LoraSettings(), settings)
    _, trunk = split_model(model, 1, 2)
    engine = TrunkEngine(trunk, plan=plan)

    def attached(config: Any) -> None:
        client, _ = split_model(tiny_model(), 1, 2)
        spec = session_spec(client, plan=plan, trunk_adapters="federated")
        wrapped = wrap(client, plan) if config is None else get_peft_model(client, config)
        attach_trunk(wrapped, LocalTransport(engine, spec))

    attached(None)
    attached(plan.peft_config())
    for name, value in changed.items():
        with pytest.raises(AdapterError, match=f"the client model's adapter has {name}="):
            attached(replace(plan.peft_config(), **{name: value}))


@pytest.mark.medium
def test_another_method_is_told_by_name() -> None:
    model = tiny_model()
    loha = PeftSettings(type="LOHA", options={"r": 2, **TWO})
    plan = resolve_plan(model, LoraSettings(), loha)
    _, trunk = split_model(model, 1, 2)
    engine = TrunkEngine(trunk, plan=plan)
    client, _ = split_model(tiny_model(), 1, 2)
    spec = session_spec(client, plan=plan, trunk_adapters="federated")
    lokr = resolve_plan(model, LoraSettings(), replace(loha, type="LOKR")).peft_config()
    lora = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    for config, name in ((lokr, "LOKR"), (lora, "LORA")):
        client, _ = split_model(tiny_model(), 1, 2)
        with pytest.raises(AdapterError, match=f"has method='{name}', and the trunk's has 'LOHA'"):
            attach_trunk(get_peft_model(client, config), LocalTransport(engine, spec))
