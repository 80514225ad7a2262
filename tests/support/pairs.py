"""Pairs: a tiny model, cut and uncut, with the same adapters on both."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from tiny_models import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from flower_split.adapters import (
    AdapterPlan,
    initial_state,
    load_state,
    resolve_lora,
    split_state,
    wrap,
)
from flower_split.config.sections import LoraSettings, WireConfig
from flower_split.optimization.settings import OptimizerSettings
from flower_split.privacy import PrivacySettings
from flower_split.remote import SplitAdamW, attach_trunk, session_spec
from flower_split.segments import layers_path, split_model
from flower_split.server.engine import TrunkEngine
from flower_split.server.local import LocalTransport
from flower_split.server.ticket_record import SessionOutcome, Stage, TicketRecord, TrunkStart
from flower_split.transport.messages import SessionLimits, StepRequest, Ticket

LORA = LoraSettings(r=4, alpha=8.0)
TICKET = Ticket(run_id=1, node_id=2, server_round=1, token="pair")


_RESOLVED: dict[object, tuple[AdapterPlan, dict[str, Tensor]]] = {}


def _plan_and_state(
    model: PreTrainedModel, lora: LoraSettings
) -> tuple[AdapterPlan, dict[str, Tensor]]:
    """The plan, and an adapter none of whose values is at its start, once a shape of model."""
    shapes = tuple((name, tuple(p.shape)) for name, p in model.named_parameters())
    key = (type(model), shapes, lora)
    if key not in _RESOLVED:
        noise = torch.Generator().manual_seed(2)
        state = {
            name: tensor + 0.02 * torch.randn(tensor.shape, generator=noise)
            for name, tensor in initial_state(model, lora, seed=1).items()
        }
        _RESOLVED[key] = resolve_lora(model, lora), state
    plan, state = _RESOLVED[key]
    return plan, {name: tensor.clone() for name, tensor in state.items()}


@dataclass
class Pair:
    """The same model twice: uncut with PEFT, and cut with a trunk behind a transport."""

    whole: PeftModel
    client: PreTrainedModel | PeftModel
    engine: TrunkEngine
    plan: AdapterPlan
    state: dict[str, Tensor]
    client_state: dict[str, Tensor]
    trunk_state: dict[str, Tensor]
    transport: LocalTransport
    record: TicketRecord
    _left: SessionOutcome | None = None

    def trained_trunk(self) -> dict[str, Tensor]:
        """The trunk's part of the adapter. It ends the session of a `federated` trunk."""
        if self.engine.mode == "shared":
            return self.engine.shared_state()
        if self.engine.mode == "frozen":
            return {}
        return dict(self._outcome().tensors)

    def trunk_moments(self) -> dict[str, Tensor]:
        """What AdamW keeps of every tensor of `trained_trunk`. It ends the session."""
        self._outcome()
        if self.record.stage is Stage.COLLECTED:
            self.engine.accept(TICKET)
        (left,) = self.engine.session_states()
        return dict(left.state.moments)

    def trunk_gradients(self) -> dict[str, Tensor]:
        """Those of the first step so far, by tensor, where the optimizer is `AS_GRADIENTS`.

        It makes the step and ends the session.
        """
        self.transport.step(StepRequest(step=0, learning_rate=0.0)).result()
        moments = self.trunk_moments().items()
        return {n.removesuffix("/exp_avg"): t for n, t in moments if n.endswith("/exp_avg")}

    def _outcome(self) -> SessionOutcome:
        if self._left is None:
            self.transport.finish()
            self._left = self.record.collect()
        assert self._left is not None
        return self._left


def make_batch(rows: int = 3, tokens: int = 11, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, tokens - row :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def backward(model: Any, seed: int) -> float:
    """The loss of a batch, after its backward pass."""
    loss = model(**make_batch(seed=seed)).loss
    loss.backward()
    return float(loss.item())


def take_steps(model: Any, optimizer: Any, steps: int = 2) -> list[float]:
    """The losses of so many batches, each with a step of its own."""
    losses = []
    for step in range(steps):
        losses.append(backward(model, step))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def take_steps_of_both(
    pair: Pair, change: Callable[[Any], None], steps: int = 2
) -> tuple[list[float], list[float]]:
    """The losses of the cut model and of the uncut one, each with AdamW after `change` of it."""
    whole = copy.deepcopy(pair.whole)  # the two share their weights
    for model in (pair.client, whole):
        change(model)
    own = [p for p in whole.parameters() if p.requires_grad]
    return (
        take_steps(pair.client, SplitAdamW(pair.client, lr=1e-2), steps),
        take_steps(whole, torch.optim.AdamW(own, lr=1e-2, weight_decay=0.0), steps),
    )


def make_pair(
    model: PreTrainedModel | None = None,
    *,
    cuts: tuple[int, int] = (1, 2),
    lora: LoraSettings = LORA,
    mode: str = "federated",
    optimizer: OptimizerSettings | None = None,
    wire: WireConfig | None = None,
    seed: int = 0,
    limits: SessionLimits | None = None,
    trunk_of: PreTrainedModel | None = None,
    privacy: PrivacySettings | None = None,
) -> Pair:
    """A pair whose client model is attached to a trunk in this process.

    `trunk_of` is the model that the trunk is cut from, where it is not `model`.
    """
    model = model or tiny_model()
    plan, state = _plan_and_state(model, lora)
    client, trunk = split_model(model, *cuts)
    if trunk_of is not None:
        _, trunk = split_model(trunk_of, *cuts)
    client_state, trunk_state = split_state(state, layers_path(model), trunk.cuts)
    engine = TrunkEngine(
        trunk,
        plan=None if mode == "frozen" else plan,
        mode=mode,
        initial=trunk_state,
        wire=wire,
        limits=limits,
        keep_optimizer=True,
    )
    own = trunk_state if mode == "federated" else {}
    record = engine.prepare(TICKET, TrunkStart(tensors=own))
    wrapped = wrap(client, plan)
    load_state(wrapped, client_state)
    spec = session_spec(
        wrapped,
        plan=plan,
        trunk_adapters=mode,
        optimizer=optimizer,
        privacy=privacy,
        wire=wire,
        seed=seed,
        silo="silo",
    )
    transport = LocalTransport(engine, spec, TICKET)
    attach_trunk(wrapped, transport)
    whole = get_peft_model(model, plan.peft_config())
    load_state(whole, state)
    return Pair(
        whole=whole,
        client=wrapped,
        engine=engine,
        plan=plan,
        state=state,
        client_state=client_state,
        trunk_state=trunk_state,
        transport=transport,
        record=record,
    )
