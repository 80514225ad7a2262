"""A chain of stages: whatever a session asks, it yields what one trunk yields, to the bit."""

import itertools
import pickle
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from asking import SECONDS, Asking, opened
from cut_sessions import MODES
from cut_training import HIDDEN, tensor
from hosting import hosting, nothing_left
from sessions_alike import plain, same, start_of, yields
from tiny_models import tiny_model
from torch import Tensor
from unkind_silos import check_others_go_on

from flower_split.adapters import AdapterPlan, resolve_lora, resolve_plan
from flower_split.config.peft import PeftSettings
from flower_split.config.sections import LoraSettings
from flower_split.errors import (
    AdapterError,
    ConfigError,
    HandshakeError,
    SequenceError,
    WireError,
)
from flower_split.privacy import PrivacySettings
from flower_split.segments import find_layers, split_model
from flower_split.server.compute.queue import BatchSettings
from flower_split.server.compute.session_step import SessionStep
from flower_split.server.engine import TrunkEngine
from flower_split.server.stages.chain import Chain
from flower_split.server.stages.engine_settings import EngineSettings
from flower_split.server.stages.local_chain import local_chain
from flower_split.server.stages.messages import Passed
from flower_split.server.ticket_record import TrunkStart
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.messages import (
    AdapterCall,
    BackwardRequest,
    Finish,
    ForwardRequest,
    StepRequest,
    Ticket,
    Weigh,
)

LAYERS = 4
"""Of the model; the trunk holds two."""
LORA = LoraSettings(r=2, alpha=4.0, dropout=0.1)


DROPPING = {"resid_pdrop": 0.3, "attn_pdrop": 0.2, "n_embd": HIDDEN}
"""Of GPT-2: its layers draw random numbers one after the other."""


def one_trunk(mode: str, family: str = "llama", **options: Any) -> TrunkEngine:
    model, plan = made(mode, family)
    return TrunkEngine(split_model(model, 1, 1)[1], plan=plan, mode=mode_of(mode), **options)


def chain_of(mode: str, family: str = "llama", **options: Any) -> Chain[Any]:
    """The same trunk, a stage for each layer."""
    model, plan = made(mode, family)
    trunks = [split_model(model, first, LAYERS - first - 1)[1] for first in (1, 2)]
    return local_chain(trunks, EngineSettings(plan=plan, mode=mode_of(mode), **options))


def made(mode: str, family: str) -> tuple[Any, AdapterPlan | None]:
    sizes: dict[str, Any] = DROPPING if family == "gpt2" else {"hidden_size": HIDDEN}
    model = tiny_model(family, LAYERS, **sizes)
    return model, resolve_lora(model, LORA) if mode in ("federated", "shared") else None


def mode_of(mode: str) -> str:
    return "frozen" if mode == "prefix" else mode


@pytest.mark.medium
@pytest.mark.parametrize("purpose", ["train", "evaluate"])
@pytest.mark.parametrize("mode", MODES)
def test_two_stages_yield_what_one_trunk_yields(mode: str, purpose: str) -> None:
    options: dict[str, Any] = {"prefix_tokens": 2 if mode == "prefix" else 0}
    options |= {"shares_adapter": mode in ("federated", "shared"), "keep_optimizer": True}
    whole = yields(one_trunk(mode, **options), mode, purpose)
    parts = yields(chain_of(mode, **options), mode, purpose)
    assert len(whole) == len(parts) > 5
    for number, (one, other) in enumerate(zip(whole, parts, strict=True)):
        assert same(one, other), (number, one, other)


@pytest.mark.medium
@pytest.mark.parametrize("mode", MODES)
def test_what_is_asked_without_waiting_yields_the_same(mode: str) -> None:
    options: dict[str, Any] = {"prefix_tokens": 2 if mode == "prefix" else 0}
    options |= {"shares_adapter": mode in ("federated", "shared")}
    whole = yields(one_trunk(mode, **options), mode, "train", over_grpc=True)
    parts = yields(chain_of(mode, **options), mode, "train", over_grpc=True)
    assert len(whole) == len(parts) > 10
    for number, (one, other) in enumerate(zip(whole, parts, strict=True)):
        assert same(one, other), number


def test_a_backward_pass_may_be_asked_for_before_its_forward_pass_is_answered() -> None:
    left = list[list[Any]]()
    for engine in (one_trunk("federated"), chain_of("federated")):
        engine.load_shared_state(start_of(engine))
        with hosting(engine) as server, GrpcTransport(server.address, engine.describe()) as silo:
            asked = list[Any]()
            for step in range(2):
                h1 = ForwardRequest(step=step, microbatch=step, hidden=tensor(0), keep_graph=True)
                g2 = BackwardRequest(step=step, microbatch=step, grad=tensor(9))
                taken = StepRequest(step=step, learning_rate=0.01)
                asked += [silo.forward(h1), silo.backward(g2), silo.step(taken)]
            left.append([plain(one.result(SECONDS)) for one in asked])
    assert same(*left)


def test_a_session_that_is_closed_answers_all_that_is_under_way() -> None:
    with nothing_left(servers_too=True):
        chain = chain_of("federated")
        session = opened(chain, chain.describe(), None)
        asked = [
            session.session.submit(
                ForwardRequest(step=0, microbatch=number, hidden=tensor(number), keep_graph=True)
            )
            for number in range(4)
        ]
        session.close()
        kinds = {type(one.exception(SECONDS)) for one in asked}
        assert kinds <= {type(None), SequenceError}
        assert chain.loads == (0,)


@pytest.mark.slow
def test_a_silo_that_never_reads_and_vanishes_costs_no_other_one_anything() -> None:
    options: dict[str, Any] = {"shares_adapter": True, "keep_optimizer": True}
    expected = yields(one_trunk("federated", **options), "federated", "train")
    check_others_go_on(chain_of("federated", **options), expected)


def test_what_is_passed_on_travels_as_it_is() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        sent = Passed(
            tensor=tensor(0).to(dtype).transpose(0, 1), drawn=(torch.get_rng_state(), None)
        )
        came = pickle.loads(pickle.dumps(sent, protocol=5))
        assert same(came.tensor, sent.tensor) and same(came.drawn[0], sent.drawn[0])  # type: ignore[index]
    assert pickle.loads(pickle.dumps(Passed(tensor=None))).tensor is None


@pytest.mark.medium
@pytest.mark.parametrize("batching", [BatchSettings(), BatchSettings(recompute=True)])
def test_dropout_draws_on_from_stage_to_stage(batching: BatchSettings) -> None:
    options: dict[str, Any] = {"shares_adapter": True, "batching": batching}
    made = [kind("federated", "gpt2", **options) for kind in (one_trunk, chain_of)]
    whole, parts = (yields(engine, "federated", "train") for engine in made)
    assert all(map(same, whole, parts))
    undropped = yields(one_trunk("federated", "gpt2", **options), "federated", "evaluate")
    assert not same(whole[2], undropped[2])


def test_a_step_that_one_stage_cannot_take_is_taken_by_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chain = chain_of("shared")
    chain.load_shared_state(start_of(chain))
    session = opened(chain, chain.describe(), None)
    stepped(session, 0)
    before, states = chain.shared_state(), chain.session_states()
    take = SessionStep.take

    def failing(self: SessionStep, *arguments: Any) -> Any:
        names = [name for name, _ in self._slot.held] if self._slot is not None else []
        if any(".layers.2." in name for name in names):
            raise WireError("the second stage cannot")
        return take(self, *arguments)

    monkeypatch.setattr(SessionStep, "take", failing)
    with pytest.raises(WireError, match="the second stage cannot"):
        stepped(session, 1)
    session.close()
    assert same(chain.shared_state(), before)
    assert same([plain(s) for s in chain.session_states()], [plain(s) for s in states])
    monkeypatch.undo()
    again = opened(chain, chain.describe(), None)
    stepped(again, 0)
    assert not same(chain.shared_state(), before)


def stepped(session: Asking, step: int) -> None:
    """One microbatch, and a step of it."""
    session.forward(
        ForwardRequest(step=step, microbatch=step, hidden=tensor(step), keep_graph=True)
    )
    session.backward(BackwardRequest(step=step, microbatch=step, grad=tensor(9)))
    session.step(StepRequest(step=step, learning_rate=0.01, norms_before=(0.25,)))


def test_stages_compute_at_the_same_time() -> None:
    model = tiny_model(layers=LAYERS, hidden_size=HIDDEN)
    trunks = [split_model(model, first, LAYERS - first - 1)[1] for first in (1, 2)]
    at_second_pass, overlapped, passes = threading.Event(), [], itertools.count()

    def first_stage(*_: Any) -> None:
        if next(passes) == 1:
            at_second_pass.set()

    def second_stage(*_: Any) -> None:
        overlapped.append(at_second_pass.wait(SECONDS))

    for trunk, index, hook in ((trunks[0], 1, first_stage), (trunks[1], 2, second_stage)):
        find_layers(trunk.model)[1][index].register_forward_pre_hook(hook)
    chain = local_chain(trunks, EngineSettings())
    with hosting(chain) as server, GrpcTransport(server.address, chain.describe()) as transport:
        asked = [
            transport.forward(ForwardRequest(step=0, microbatch=number, hidden=tensor(number)))
            for number in range(4)
        ]
        answers = [one.result(SECONDS) for one in asked]
        transport.finish()
    assert overlapped == [True] * 4
    whole = one_trunk("frozen")
    session = opened(whole, whole.describe(), None)
    for number, answer in enumerate(answers):
        request = ForwardRequest(step=0, microbatch=number, hidden=tensor(number))
        assert isinstance(answer, Tensor) and torch.equal(answer, session.forward(request))


def test_a_stage_without_an_adapter_in_it_computes_as_it_is() -> None:
    model = tiny_model(layers=LAYERS, hidden_size=HIDDEN)
    only = PeftSettings(
        type="LORA",
        options={"layers_to_transform": "2"},
    )
    plan = resolve_plan(model, replace(LORA, target_modules=("q_proj", "down_proj")), only)
    trunks = [split_model(model, first, LAYERS - first - 1)[1] for first in (1, 2)]
    chain = local_chain(trunks, EngineSettings(plan=plan, mode="federated"))
    whole = TrunkEngine(split_model(model, 1, 1)[1], plan=plan)
    assert same(trained(whole), trained(chain))


def trained(engine: TrunkEngine | Chain[Any]) -> dict[str, Tensor]:
    """What a session makes of its adapter."""
    ticket = Ticket(run_id=1, node_id=2, server_round=3, token="t")
    record = engine.prepare(ticket, TrunkStart(tensors=start_of(engine)))
    session = opened(engine, engine.describe(), ticket)
    for step in range(2):
        stepped(session, step)
    session.finish()
    outcome = record.collect()
    assert outcome is not None and outcome.tensors
    return dict(outcome.tensors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"privacy": PrivacySettings(noise=1.0, clip=1.0, expected_batch=4)}, "trunk.device"),
        ({"peft": PeftSettings(type="ADALORA", options={"total_step": 9})}, "AdaLoRA"),
    ],
)
def test_what_a_chain_does_not_do_exactly_is_refused(options: Any, message: str) -> None:
    model = tiny_model(layers=LAYERS, hidden_size=HIDDEN)
    plan = resolve_plan(model, LoraSettings(), options.pop("peft", PeftSettings()))
    trunks = [split_model(model, first, LAYERS - first - 1)[1] for first in (1, 2)]
    with pytest.raises(ConfigError, match=message):
        local_chain(trunks, EngineSettings(plan=plan, mode="federated", **options))


def test_a_silo_that_brings_noise_of_its_own_is_refused() -> None:
    chain = chain_of("federated")
    privacy = PrivacySettings(noise=1.0, clip=1.0, expected_batch=4)
    with pytest.raises(HandshakeError, match="row by row"):
        opened(chain, replace(chain.describe(), privacy=privacy), None)
    assert opened(chain, chain.describe(), None).finish().steps == 0


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ForwardRequest(step=1, microbatch=0, hidden=tensor(0)), SequenceError),
        (ForwardRequest(step=0, microbatch=0, hidden=torch.zeros(2, 5, 8)), WireError),
        (ForwardRequest(step=0, microbatch=0, hidden=tensor(0).double()), WireError),
        (BackwardRequest(step=0, microbatch=0, grad=tensor(0)), SequenceError),
        (StepRequest(step=0, learning_rate=float("nan")), WireError),
        (StepRequest(step=0, learning_rate=0.1, norms_after=(-1.0,)), WireError),
        (Weigh(microbatch=0, factors=(1.0, 1.0)), SequenceError),
        (AdapterCall(action="read"), SequenceError),
        (AdapterCall(action="ranks_scores"), SequenceError),
    ],
)
def test_bad_requests_are_refused_and_nothing_is_left(request_: Any, error: Any) -> None:
    with nothing_left(servers_too=True):
        chain = chain_of("federated")
        session = opened(chain, chain.describe(), None)
        with pytest.raises(error):
            session.ask(request_)
        session.close()
        session.close()
        with pytest.raises(SequenceError, match="ended"):
            session.ask(Finish())


def test_a_session_that_one_stage_cannot_open_is_open_at_none() -> None:
    chain = chain_of("federated")
    start = start_of(chain)
    wrong = {name: t[:1] if ".layers.2." in name else t for name, t in start.items()}
    ticket = Ticket(run_id=1, node_id=2, server_round=3, token="t")
    chain.prepare(ticket, TrunkStart(tensors=wrong))
    with nothing_left(servers_too=True), pytest.raises(AdapterError):
        opened(chain, chain.describe(), ticket)
