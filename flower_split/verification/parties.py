"""Silo and trunk of a twin: each loads its part, and the silo calls the trunk over a transport."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flower_split.adapters import (
    AdapterPlan,
    initial_state,
    load_state,
    resolve_lora,
    split_state,
    wrap,
)
from flower_split.config.sections import LoraSettings
from flower_split.errors import AdapterError
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote import attach_trunk, session_spec
from flower_split.segments import layers_path, load_client_model, load_trunk
from flower_split.segments.layers import find_layers
from flower_split.server.engine import TrunkEngine
from flower_split.server.local import LocalTransport
from flower_split.verification.twin import Twin, align

_LORA = LoraSettings(r=4, alpha=8.0)

# A large epsilon, so that AdamW's step tells how large a gradient is, and not its sign only.
OPTIMIZER = OptimizerSettings(eps=1.0, weight_decay=0.0, max_grad_norm=0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Parties:
    """The uncut model and the client model, with the same adapters."""

    whole: PreTrainedModel | Any
    client: PreTrainedModel | Any
    engine: TrunkEngine
    plan: AdapterPlan | None


Adapters = tuple[AdapterPlan | None, dict[str, Tensor]]


def make_parties(twin: Twin, adapters: Adapters, bottom: int, top: int, attention: str) -> Parties:
    """Both models of a twin at a cut, the client model with a trunk attached.

    Raises:
        FlowerSplitError: a party cannot load its part, or the two do not fit together.
    """
    whole = twin.whole(attention)
    plan, state = adapters
    cuts = {"bottom_layers": bottom, "top_layers": top, "attention": attention, "task": twin.task}
    client: Any = load_client_model(twin.folder, **cuts)  # type: ignore[arg-type]
    trunk = load_trunk(twin.folder, **cuts)  # type: ignore[arg-type]
    align(client)
    align(trunk)
    mode = "frozen" if plan is None else "shared"
    engine = TrunkEngine(trunk, plan=plan, mode=mode, optimizer=OPTIMIZER)
    wrapped: Any = whole
    if plan is not None:
        client_state, trunk_state = split_state(state, layers_path(whole), trunk.cuts)
        engine.load_shared_state(trunk_state)
        client, wrapped = wrap(client, plan), wrap(whole, plan)
        load_state(client, client_state)
        load_state(wrapped, state)
    spec = session_spec(client, plan=plan, trunk_adapters=mode, optimizer=OPTIMIZER)
    attach_trunk(client, LocalTransport(engine, spec))
    return Parties(whole=wrapped, client=client, engine=engine, plan=plan)


def make_adapters(whole: PreTrainedModel) -> Adapters:
    """A plan of LoRA on two kinds of linear layers, and values none of which is at its start."""
    linear = [
        name.rpartition(".")[2]
        for layer in find_layers(whole)[1]
        for name, module in layer.named_modules()
        if type(module) in (nn.Linear, Conv1D)
    ]
    # PEFT would take a fused expert's parameter of that name for a target too.
    fused = {name.rpartition(".")[2] for name, _ in whole.named_parameters()}
    linear = [name for name in linear if name not in fused]
    if not linear:  # nothing that PEFT's LoRA takes; the trunk stays frozen
        return None, {}
    for targets in ((linear[0], linear[-1]), (linear[0],), (linear[-1],)):
        lora = replace(_LORA, target_modules=tuple(dict.fromkeys(targets)))
        try:
            plan = resolve_lora(whole, lora)
        except AdapterError:  # PEFT keeps out of some projections of state-space layers
            continue
        state = initial_state(whole, lora, seed=1)
        return plan, {name: tensor + 0.02 for name, tensor in state.items()}
    return None, {}
