"""Which of PEFT's methods train on quantized weights as they do in the uncut quantized model."""

from functools import cache, partial

import pytest
import torch
from method_cases import CASES
from pairs import take_steps
from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from quantized_models import quantized
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

from flower_split import (
    LocalTransport,
    SplitAdamW,
    attach_trunk,
    load_client_model,
    load_trunk,
    session_spec,
)
from flower_split.adapters import (
    initial_adapter,
    load_state,
    method_problems,
    read_state,
    resolve_plan,
    split_state,
    wrap,
)
from flower_split.adapters.methods import ON_QUANTIZED
from flower_split.config.run_config import read_run_config
from flower_split.errors import ConfigError
from flower_split.segments import layers_path
from flower_split.server.engine import TrunkEngine
from flower_split.server.ticket_record import TrunkStart
from flower_split.transport.messages import Ticket

pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")

KINDS = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
CUTS = {"bottom_layers": 1, "top_layers": 1}
TICKET = Ticket(run_id=1, node_id=2, server_round=1, token="quantized")
METHODS = sorted({c.method for c in CASES.values() if not c.frozen} - {"LORA"})
TAKEN = [(kind, method) for kind, methods in ON_QUANTIZED.items() for method in sorted(methods)]
OFTEN = {("nf4", "ADALORA"), ("int8", "IA3"), ("torchao-int8", "ROAD")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("quantized")
    model = tiny_model(layers=3, hidden_size=64, intermediate_size=128)
    model.save_pretrained(place)
    return place


@cache
def whole(folder, kind):
    return partial(quantized, folder, kind)


def run_config(method, kind):
    values = {"model.name": "m", "peft.type": method, "model.quantization": kind}
    return read_run_config(values | CASES[method].keys)


def difference(folder, method, kind):
    """The largest of losses and adapter tensors after two steps, cut and uncut."""
    config = run_config(method, kind)
    skeleton = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plan = resolve_plan(skeleton, config.lora, config.peft)
    client = load_client_model(folder, **CUTS, quantization=kind)
    trunk = load_trunk(folder, **CUTS, quantization=kind)
    parts = [client, trunk.model]
    initial = initial_adapter(skeleton, plan, config.lora, parts, seed=3)
    own, theirs = split_state(initial, layers_path(skeleton), trunk.cuts)
    engine = TrunkEngine(trunk, plan=plan, initial=theirs)
    record = engine.prepare(TICKET, TrunkStart(tensors=theirs))
    client = wrap(client, plan)
    load_state(client, own)
    spec = session_spec(client, plan=plan, trunk_adapters="federated")
    transport = LocalTransport(engine, spec, TICKET)
    attach_trunk(client, transport)
    uncut = whole(folder, kind)()
    torch.manual_seed(3)
    uncut = get_peft_model(
        uncut, KINDS[method](task_type="CAUSAL_LM", **CASES[method].values), adapter_name="default"
    )
    began = read_state(uncut)
    assert began.keys() == initial.keys()
    found = [float((began[n] - initial[n]).abs().max()) for n in began]
    ours = take_steps(client, SplitAdamW(client, lr=1e-2))
    transport.finish()
    free = [p for p in uncut.parameters() if p.requires_grad]
    others = take_steps(uncut, torch.optim.AdamW(free, lr=1e-2, weight_decay=0.0))
    found += [abs(a - b) for a, b in zip(ours, others, strict=True)]
    state = read_state(client) | dict(record.collect().tensors)
    after = read_state(uncut)
    assert any(not torch.equal(after[n], began[n]) for n in after)
    return max(found + [float((state[n] - after[n]).abs().max()) for n in after])


@pytest.mark.medium
@pytest.mark.parametrize(
    ("kind", "method"),
    [pytest.param(*one, marks=() if one in OFTEN else pytest.mark.exhaustive) for one in TAKEN],
)
def test_a_method_that_is_taken_equals_the_uncut_quantized_model(folder, kind, method):
    assert difference(folder, method, kind) <= 1e-6


@pytest.mark.parametrize("kind", ON_QUANTIZED)
@pytest.mark.parametrize("method", METHODS)
def test_any_other_is_refused_with_those_that_are_taken(kind, method):
    values = {"model.name": "m", "peft.type": method, "model.quantization": kind}
    check = partial(read_run_config, values | CASES[method].keys, check_method=method_problems)
    if method in ON_QUANTIZED[kind]:
        check()
        return
    with pytest.raises(ConfigError) as caught:
        check()
    assert f"model.quantization {kind!r} is for plain LoRA" in str(caught.value)
    assert all(taken in str(caught.value) for taken in ON_QUANTIZED[kind])
