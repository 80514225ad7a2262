"""AdaLoRA over a cut is AdaLoRA of the uncut model: losses, gradients, scores and ranks."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from hosting import hosting
from pairs import make_batch, make_pair
from peft import AdaLoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from tiny_models import tiny_model
from torch import Tensor

from flower_split import SplitAdamW, attach_trunk, split_model
from flower_split.adapters import (
    AdapterPlan,
    initial_adapter,
    load_state,
    read_state,
    resolve_plan,
    split_state,
    wrap,
)
from flower_split.adapters.adalora.rank_allocation import check_last_allocation
from flower_split.config.peft import PeftSettings
from flower_split.config.sections import LoraSettings, TrainConfig
from flower_split.config.tasks import CAUSAL_LM, MASKED_LM
from flower_split.errors import AdapterError, ConfigError, SequenceError, TrunkError, WireError
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote import SplitStages, session_spec
from flower_split.segments import layers_path
from flower_split.server.engine import TrunkEngine
from flower_split.server.local import LocalTransport
from flower_split.server.ticket_record import TrunkStart
from flower_split.training import Accumulator, train_round
from flower_split.training.stages import mode
from flower_split.transport.base import Transport
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.messages import AdapterCall, ForwardReply, Ticket

STEPS = 8
OPTIONS: dict[str, float | str] = {
    "target_modules": "q_proj, down_proj",
    "init_r": 6,
    "target_r": 2,
    "tinit": 2,
    "tfinal": 3,
    "deltaT": 2,
    "total_step": STEPS,
    "lora_alpha": 8,
}
CLIPPED = OptimizerSettings(max_grad_norm=0.5)
TICKET = Ticket(run_id=1, node_id=2, server_round=1, token="ranks")


@dataclass
class Sides:
    """The uncut model, and the same one cut, with one AdaLoRA adapter."""

    whole: PeftModel
    client: Any
    engine: TrunkEngine
    plan: AdapterPlan
    trunk_state: dict[str, Tensor]
    path: str

    def spec(self, **options: Any) -> Any:
        mode = self.engine.mode
        return session_spec(self.client, plan=self.plan, trunk_adapters=mode, **options)

    def attach(self, transport: Transport) -> Any:
        attach_trunk(self.client, transport)
        return self.client

    def opened(self, **options: Any) -> LocalTransport:
        """A session in this process that is attached."""
        transport = LocalTransport(self.engine, self.spec(**options))
        self.attach(transport)
        return transport


@cache
def resolved(options: tuple[tuple[str, Any], ...]) -> tuple[AdapterPlan, dict[str, Tensor]]:
    """The plan of `OPTIONS` with changes, and PEFT's initial adapter."""
    model = tiny_model()
    settings = PeftSettings(type="ADALORA", options=OPTIONS | dict(options))
    plan = resolve_plan(model, LoraSettings(), settings)
    return plan, initial_adapter(model, plan, LoraSettings(), [model], seed=1)


def sides(
    *,
    mode: str = "federated",
    cuts: tuple[int, int] = (1, 2),
    start: float = 0.02,
    task: str = CAUSAL_LM,
    **options: Any,
) -> Sides:
    model = tiny_model()
    plan, first = resolved(tuple(sorted(options.items())))
    plan = replace(plan, task=task)
    noise = torch.Generator().manual_seed(2)
    state = {
        name: tensor + start * torch.randn(tensor.shape, generator=noise)
        for name, tensor in first.items()
    }
    client, trunk = split_model(model, *cuts)
    own, trunk_state = split_state(state, layers_path(model), trunk.cuts)
    frozen = mode == "frozen"
    initial = None if frozen else trunk_state
    engine = TrunkEngine(trunk, plan=None if frozen else plan, mode=mode, initial=initial)
    wrapped = wrap(client, plan)
    load_state(wrapped, own)
    if frozen:
        names = [n for n in plan.modules if any(f"{n}." in name for name in own)]
        plan = plan.restricted(names, list(own))
        state = own
    whole = get_peft_model(model, plan.peft_config())
    load_state(whole, state)
    path = layers_path(model)
    return Sides(
        whole=whole, client=wrapped, engine=engine, plan=plan, trunk_state=trunk_state, path=path
    )


def train(model: Any, optimizer: Any, *, steps: int = STEPS, pieces: int = 1) -> list[float]:
    """A stock loop; the losses."""
    losses = []
    for step in range(steps):
        for piece in range(pieces):
            loss = model(**make_batch(seed=10 * step + piece)).loss
            (loss / pieces).backward()
            losses.append(loss.item())
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    return losses


def adamw(model: Any) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)


class OverGrpc:
    """A session over gRPC with a ticket, and what it left."""

    def __init__(self, both: Sides, **options: Any) -> None:
        self.both, self.options = both, options

    def run(self, work: Any) -> tuple[Any, dict[str, Tensor]]:
        both = self.both
        record = both.engine.prepare(TICKET, TrunkStart(tensors=both.trunk_state))
        with hosting(both.engine) as server:
            spec = both.spec(**self.options)
            with GrpcTransport(server.address, spec, TICKET) as transport:
                both.attach(transport)
                found = work(both.client)
                transport.finish()
        left = record.collect()
        assert left is not None
        return found, dict(left.tensors)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def ranks(state: dict[str, Tensor]) -> dict[str, int]:
    return {name: int((t != 0).sum()) for name, t in state.items() if "lora_E" in name}


@pytest.mark.sampled(keep=1)
@pytest.mark.medium
@pytest.mark.parametrize("pieces", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_stock_loop_is_the_uncut_ones_to_the_bit(pieces: int) -> None:
    both = sides()

    def work(model: Any) -> list[float]:
        return train(model, SplitAdamW(model, lr=1e-2), pieces=pieces)

    losses, trunk = OverGrpc(both).run(work)
    uncut = train(both.whole, adamw(both.whole), pieces=pieces)
    # The term's sum over all modules is made of two.
    assert losses == pytest.approx(uncut, rel=1e-6)
    ours, theirs = read_state(both.client) | trunk, read_state(both.whole)
    same(ours, theirs)
    assert sum(ranks(theirs).values()) < 6 * len(both.plan.modules)
    assert len(set(ranks(theirs).values())) > 1


@pytest.mark.sampled(keep=1)
@pytest.mark.medium
@pytest.mark.parametrize("depth", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_microbatches_in_flight_change_nothing(depth: int) -> None:
    both = sides()
    batches = [make_batch(3, 9 + number % 4, seed=number) for number in range(6)]
    config = TrainConfig(
        local_epochs=STEPS // 2,
        accumulation=3,
        in_flight=depth,
        max_grad_norm=0.5,
        learning_rate=1e-2,
    )

    def work(model: Any) -> Any:
        optimizer = SplitAdamW(model, lr=0.0)
        return train_round(model, optimizer, batches, config, stages=SplitStages(model))

    metrics, trunk = OverGrpc(both, optimizer=CLIPPED).run(work)
    uncut = train_round(both.whole, adamw(both.whole), batches, config)
    assert metrics.loss == pytest.approx(uncut.loss, rel=1e-6)
    theirs = read_state(both.whole)
    same(read_state(both.client) | trunk, theirs)
    assert sum(ranks(theirs).values()) < 6 * len(both.plan.modules)


@pytest.mark.medium
@pytest.mark.parametrize("staged", [True, False])
def test_a_frozen_trunk_leaves_the_budget_to_the_silo(staged: bool) -> None:
    both = sides(mode="frozen")
    both.opened()
    batches = [make_batch(seed=number) for number in range(STEPS)]
    config = TrainConfig(local_epochs=1, learning_rate=1e-2, max_grad_norm=0.0)
    cut = SplitAdamW(both.client, lr=0.0)
    stages = SplitStages(both.client) if staged else None
    ours = train_round(both.client, cut, batches, config, stages=stages)
    theirs = train_round(both.whole, adamw(both.whole), batches, config)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    same(read_state(both.client), read_state(both.whole))


@pytest.mark.medium
@pytest.mark.parametrize("mode", ["federated", "frozen"])
def test_without_a_task_no_loss_has_the_term_as_in_peft(mode: str) -> None:
    both = sides(mode=mode, task=MASKED_LM, orth_reg_weight=2.0)
    both.opened()
    batches = [make_batch(seed=number) for number in range(3)]
    with torch.no_grad():
        assert torch.equal(both.client(**batches[0]).loss, both.whole(**batches[0]).loss)
    config = TrainConfig(local_epochs=1, learning_rate=1e-2, max_grad_norm=0.0)
    cut = SplitAdamW(both.client, lr=0.0)
    ours = train_round(both.client, cut, batches, config, stages=SplitStages(both.client))
    theirs = train_round(both.whole, adamw(both.whole), batches, config)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    left = read_state(both.whole)
    assert all(torch.equal(tensor, left[name]) for name, tensor in read_state(both.client).items())


@pytest.mark.medium
def test_losses_without_gradients_and_without_the_adapter_have_the_term_too() -> None:
    both = sides(orth_reg_weight=2.0)
    both.opened()
    batch = make_batch()
    with torch.no_grad():
        ours, theirs = both.client(**batch).loss, both.whole(**batch).loss
        assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
        plain = sides(orth_reg_weight=0.0).whole(**batch).loss
        assert float(theirs) > float(plain) + 1
        with both.client.disable_adapter(), both.whole.disable_adapter():
            ours, theirs = both.client(**batch).loss, both.whole(**batch).loss
            assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
        del batch["labels"]
        assert torch.equal(both.client(**batch).logits, both.whole(**batch).logits)
    logits = [model(**batch).logits.sum() for model in (both.client, both.whole)]
    for one in logits:  # a loss of one's own has no term
        one.backward()
    mine = dict(both.client.named_parameters())
    for name, parameter in both.whole.named_parameters():
        if name in mine and parameter.grad is not None:
            assert torch.equal(mine[name].grad, parameter.grad)


@pytest.mark.medium
@pytest.mark.parametrize("way", ["autocast", "measured"])
def test_it_is_followed_under_autocast_and_in_a_loop_of_ones_own(way: str) -> None:
    both = sides(tinit=0, deltaT=1, total_step=4, tfinal=1)
    both.opened()
    stages = SplitStages(both.client, measures=True) if way == "measured" else None
    cut, uncut = SplitAdamW(both.client, lr=1e-2), adamw(both.whole)
    for model, optimizer in ((both.client, cut), (both.whole, uncut)):
        found = Accumulator(model, stages=stages if model is both.client else None)
        for step in range(4):
            batches = [make_batch(seed=step), make_batch(seed=step + 9)]
            if way == "measured":
                with mode(model, training=True):
                    found.add(batches)
            else:
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model(**batches[0]).loss
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            model.base_model.update_and_allocate(step)
            optimizer.zero_grad()
    theirs = read_state(both.whole)
    for name, tensor in read_state(both.client).items():
        assert (tensor - theirs[name]).abs().max() <= 1e-6, name
    assert len(set(ranks(theirs).values())) > 1


@pytest.mark.medium
def test_sessions_at_once_do_not_mask_each_others_triplets() -> None:
    """PEFT finds an adapter's tensors by parts of names, and `session1` is one of `session10`."""
    both = sides()
    for _ in range(11):
        LocalTransport(both.engine, both.spec())
    record = both.engine.prepare(TICKET, TrunkStart(tensors=both.trunk_state))
    transport = LocalTransport(both.engine, both.spec(), TICKET)
    both.attach(transport)
    train(both.client, SplitAdamW(both.client, lr=1e-2))
    transport.finish()
    left = record.collect()
    assert left is not None
    train(both.whole, adamw(both.whole))
    same(read_state(both.client) | dict(left.tensors), read_state(both.whole))


def test_after_the_last_allocation_the_ranks_that_were_sent_stay() -> None:
    both = sides(start=0.0)
    whole = read_state(both.whole)
    for name, tensor in whole.items():
        if "lora_E" in name:
            tensor[:2] = 0.1
    load_state(both.client, {n: whole[n] for n in read_state(both.client)})
    both.engine.load_shared_state({n: whole[n] for n in both.trunk_state})
    both.opened()
    optimizer = SplitAdamW(both.client, lr=1e-2)
    both.client(**make_batch()).loss.backward()
    optimizer.step()
    both.client.base_model.update_and_allocate(STEPS - 1)
    assert set(ranks(read_state(both.client)).values()) == {2}


def test_a_schedule_that_is_over_before_it_began_is_refused() -> None:
    both = sides(start=0.0)
    both.opened()
    optimizer = SplitAdamW(both.client, lr=1e-2)
    both.client(**make_batch()).loss.backward()
    optimizer.step()
    with pytest.raises(AdapterError, match="past its last allocation"):
        both.client.base_model.update_and_allocate(STEPS)


def test_the_last_allocation_is_none_of_a_rounds_first_steps() -> None:
    client = sides().client  # the last one is at step 5
    for steps, rounds in ((4, 3), (5, 1), (6, 2), (0, 2)):
        check_last_allocation(client, steps, rounds)
    with pytest.raises(AdapterError, match="is step 5, the first of round 2"):
        check_last_allocation(client, 5, 2)


def test_a_step_that_is_counted_twice_is_refused_where_scores_are_gone() -> None:
    both = sides(total_step=4, tinit=0, tfinal=1, deltaT=1)
    both.opened()
    optimizer = SplitAdamW(both.client, lr=1e-2)
    both.client(**make_batch()).loss.backward()
    optimizer.step()
    for step in (2, 3):
        both.client.base_model.update_and_allocate(step)
    with pytest.raises(AdapterError, match="once for each optimizer step"):
        both.client.base_model.update_and_allocate(3)


@pytest.mark.parametrize("before", ["backward", "step", "zeroed"])
def test_ranks_are_allocated_between_step_and_zero_grad(before: str) -> None:
    both = sides()
    both.opened()
    optimizer = SplitAdamW(both.client, lr=1e-2)
    if before != "backward":
        both.client(**make_batch()).loss.backward()
    if before == "step":
        torch.nn.utils.clip_grad_norm_(both.client.parameters(), 1e-3)
    if before == "zeroed":
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(AdapterError, match=r"after optimizer\.step\(\) and before zero_grad"):
        both.client.base_model.update_and_allocate(0)


def test_a_client_model_is_wrapped_first_and_saved_by_the_server() -> None:
    both = sides()
    bare, trunk = split_model(tiny_model(), 1, 2)
    engine = TrunkEngine(trunk, plan=both.plan)
    spec = session_spec(bare, plan=both.plan, trunk_adapters="federated")
    with pytest.raises(AdapterError, match=r"wrap the client model with flower_split\.wrap"):
        attach_trunk(bare, LocalTransport(engine, spec))
    both.opened()
    with pytest.raises(AdapterError, match="cannot be saved"):
        get_peft_model_state_dict(both.client)


def test_other_settings_than_the_sessions_are_refused() -> None:
    both = sides()
    for changed in ({"orth_reg_weight": 0.1}, {"total_step": 99}, {"init_r": 4}, {"beta1": 0.5}):
        client, _ = split_model(tiny_model(), 1, 2)
        values = {**OPTIONS, "target_modules": ["q_proj", "down_proj"], **changed}
        wrapped = get_peft_model(client, AdaLoraConfig(task_type="CAUSAL_LM", **values))
        spec = session_spec(wrapped, plan=both.plan, trunk_adapters="federated")
        with pytest.raises(AdapterError, match=next(iter(changed))):
            attach_trunk(wrapped, LocalTransport(both.engine, spec))


def test_a_shared_trunk_is_refused() -> None:
    both = sides()
    _, trunk = split_model(tiny_model(), 1, 2)
    with pytest.raises(ConfigError, match="shared trunk has one adapter for all"):
        TrunkEngine(trunk, plan=both.plan, mode="shared")


@pytest.mark.medium
def test_a_session_without_it_leaves_peft_to_itself() -> None:
    both, alone = sides(), sides(mode="frozen")
    both.opened()
    attach_trunk(both.client, LocalTransport(alone.engine, alone.spec()))
    load_state(both.client, read_state(alone.whole))
    train(both.client, SplitAdamW(both.client, lr=1e-2))
    train(alone.whole, adamw(alone.whole))
    same(read_state(both.client), read_state(alone.whole))


class Lying(LocalTransport):
    """Says something else than the trunk."""

    lie: Any = staticmethod(lambda reply: reply)

    def forward(self, request: Any) -> Any:
        return self._told(super().forward(request))

    def adapter(self, call: AdapterCall) -> Any:
        return self._told(super().adapter(call))

    def _told(self, answer: Any) -> Any:
        reply = self.lie(answer.result())
        answer = type(answer)()
        answer.set_result(reply)
        return answer


@pytest.mark.medium
def test_a_trunk_that_tells_other_scores_than_the_plan_has_is_refused() -> None:
    both = sides()
    transport = Lying(both.engine, both.spec())
    both.attach(transport)

    def one_less(reply: Any) -> Any:
        return replace(reply, scores=reply.scores[1:]) if hasattr(reply, "scores") else reply

    transport.lie = one_less
    with pytest.raises(WireError, match="has 24 by the plan"):
        train(both.client, SplitAdamW(both.client, lr=1e-2))

    def no_number(reply: Any) -> Any:
        given = getattr(reply, "scores", ())
        return replace(reply, scores=(float("nan"), *given[1:])) if given else reply

    both = sides()
    transport = Lying(both.engine, both.spec())
    both.attach(transport)
    transport.lie = no_number
    with pytest.raises(AdapterError, match="not finite"):
        train(both.client, SplitAdamW(both.client, lr=1e-2))


def test_a_trunk_without_a_term_or_with_one_too_many_is_refused() -> None:
    both, plain = sides(), make_pair()
    transport = Lying(both.engine, both.spec())
    both.attach(transport)
    transport.lie = lambda reply: getattr(reply, "hidden", reply)
    with pytest.raises(WireError, match="no orthogonality"):
        both.client(**make_batch())
    spec = plain.transport.spec
    plain.transport.close()
    other = Lying(plain.engine, spec)
    other.lie = lambda reply: ForwardReply(hidden=reply, orthogonality=1.0)
    attach_trunk(plain.client, other)
    with pytest.raises(WireError, match="has no AdaLoRA"):
        plain.client(**make_batch())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (AdapterCall(action="ranks_update"), "has no gradient"),
        (AdapterCall(action="ranks_scores"), "no scores before an update"),
        (AdapterCall(action="ranks_mask", threshold=1.0), "no scores before an update"),
        (AdapterCall(action="ranks_mask", threshold=float("nan")), "a threshold of nan"),
    ],
)
def test_a_silo_that_asks_out_of_turn_costs_itself_alone(call: AdapterCall, said: str) -> None:
    both = sides()
    transport = LocalTransport(both.engine, both.spec())
    with pytest.raises(TrunkError, match=said):
        transport.adapter(call).result()
    both.opened()
    with torch.no_grad():
        batch = make_batch()
        assert torch.equal(both.client(**batch).logits, both.whole(**batch).logits)


def test_ranks_of_another_method_are_none() -> None:
    pair = make_pair()
    with pytest.raises(SequenceError, match="no AdaLoRA"):
        pair.transport.adapter(AdapterCall(action="ranks_reset")).result()
