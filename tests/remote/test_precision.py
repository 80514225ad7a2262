"""Weights and autocast in bfloat16, on either side of the cut or on both."""

from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch
from asking import opened
from late_transport import LateTransport
from pairs import LORA, Pair, make_batch, make_pair
from tiny_models import CASES, Case, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from flower_split.adapters import adapter_parameters, read_state
from flower_split.config.sections import LoraSettings, TrainConfig, WireConfig
from flower_split.devices import autocasting
from flower_split.errors import ModelError, WireError
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote import SplitAdamW, SplitStages, attach_trunk
from flower_split.remote.border import SiloBorder
from flower_split.remote.trunk import find_remote
from flower_split.segments import split_model
from flower_split.server.border import TrunkBorder
from flower_split.server.engine import TrunkEngine
from flower_split.training import WholeModel, train_round
from flower_split.training.stages import Stages
from flower_split.transport.messages import BackwardRequest, ForwardRequest

NARROW = torch.bfloat16
CPU = torch.device("cpu")
CLIPPED = OptimizerSettings(max_grad_norm=0.05)
CONFIG = TrainConfig(learning_rate=1e-2, accumulation=3, local_steps=2, max_grad_norm=0.05)
BATCHES = [make_batch(3, 9 + number, seed=number) for number in range(6)]


def trained(model: Any, optimizer: torch.optim.Optimizer, stages: Stages) -> float:
    return train_round(model, optimizer, BATCHES, CONFIG, stages=stages).loss


def train_whole(pair: Pair, autocast: torch.dtype | None = None) -> float:
    parameters = [p for p in pair.whole.parameters() if p.requires_grad]
    return trained(
        pair.whole,
        torch.optim.AdamW(parameters, weight_decay=0.0),
        WholeModel(pair.whole, autocast=autocast),
    )


def train_split(pair: Pair, autocast: torch.dtype | None = None) -> float:
    stages = SplitStages(pair.client, autocast=autocast)
    return trained(pair.client, SplitAdamW(pair.client, lr=0.0), stages)


def adapter(pair: Pair) -> dict[str, Tensor]:
    return read_state(pair.client) | pair.trained_trunk()


def assert_same_adapters(pair: Pair) -> None:
    expected, found = read_state(pair.whole), adapter(pair)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert any(not torch.equal(tensor, pair.state[name]) for name, tensor in expected.items())


@pytest.mark.medium
@pytest.mark.parametrize("codec", ["fp32", "bf16"])
def test_bfloat16_weights_on_both_sides_equal_the_uncut_model_to_the_bit(codec: str) -> None:
    pair = make_pair(
        tiny_model().to(NARROW),
        optimizer=CLIPPED,
        wire=WireConfig.uniform(codec),
    )
    assert train_split(pair) == train_whole(pair)
    assert_same_adapters(pair)


def test_adapters_gradients_and_optimizers_are_float32_beside_bfloat16_weights() -> None:
    pair = make_pair(tiny_model().to(NARROW), optimizer=OptimizerSettings(beta1=0.0))
    optimizer = SplitAdamW(pair.client, lr=0.01)
    pair.client(**make_batch(), use_cache=False).loss.backward()
    own = dict(adapter_parameters(pair.client))
    assert own
    assert {p.dtype for p in own.values()} == {torch.float32}
    assert {p.grad.dtype for p in own.values() if p.grad is not None} == {torch.float32}
    at_trunk = [p for n, p in pair.engine.trunk.named_parameters() if "lora_" in n]
    assert {p.dtype for p in at_trunk} == {torch.float32}
    optimizer.step()
    moments = pair.trunk_moments()
    assert {t.dtype for t in moments.values()} == {torch.float32}
    # Without beta1 the first moment is the gradient itself: float32, as the uncut model's is.
    pair.whole(**make_batch(), use_cache=False).loss.backward()
    for name, parameter in adapter_parameters(pair.whole):
        if f"{name}/exp_avg" in moments:
            assert parameter.grad is not None and parameter.grad.dtype == torch.float32
            assert torch.equal(moments[f"{name}/exp_avg"], parameter.grad), name
    assert {t.dtype for state in optimizer.state.values() for t in state.values()} == {
        torch.float32
    }
    assert {t.dtype for t in adapter(pair).values()} == {torch.float32}
    weights = [
        parameter
        for name, parameter in pair.client.named_parameters()
        if "lora_" not in name and not name.endswith("trunk_gradient")
    ]
    assert {p.dtype for p in weights} == {NARROW}


@pytest.mark.medium
@pytest.mark.parametrize("weights", [torch.float32, NARROW], ids=["float32", "bfloat16"])
def test_autocast_on_both_sides_equals_the_uncut_model_to_the_bit(weights: torch.dtype) -> None:
    pair = make_pair(tiny_model().to(weights), optimizer=CLIPPED)
    pair.engine.trunk.autocast = NARROW
    split = train_split(pair, NARROW)
    assert split == train_whole(pair, NARROW)
    assert_same_adapters(pair)
    exact = make_pair(tiny_model().to(weights), optimizer=CLIPPED)
    assert train_split(exact) != split


FAMILIES = {case.model_type: case for case in CASES}


@pytest.mark.sampled(keep=3)
@pytest.mark.parametrize("case", FAMILIES.values(), ids=FAMILIES)
def test_every_family_under_autocast_equals_the_uncut_model_to_the_bit(case: Case) -> None:
    attention_only = LoraSettings(r=4, target_modules=("q_proj", "v_proj"))
    pair = make_pair(
        case.model(), lora=attention_only if "num_experts_per_tok" in case.values else LORA
    )
    pair.engine.trunk.autocast = NARROW
    losses = []
    for model in (pair.client, pair.whole):
        with autocasting(CPU, NARROW):
            loss = model(**make_batch(), use_cache=False).loss
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == losses[1]
    whole = {n: p.grad for n, p in adapter_parameters(pair.whole)}
    for name, parameter in adapter_parameters(pair.client):
        assert torch.equal(parameter.grad, whole[name]), name


@pytest.mark.sampled(keep=2)
@pytest.mark.medium
@pytest.mark.parametrize(
    ("silo", "trunk", "silo_casts", "trunk_casts"),
    [
        (NARROW, torch.float32, None, None),
        (torch.float32, NARROW, None, None),
        (torch.float16, NARROW, None, None),
        (torch.float32, torch.float32, NARROW, None),
        (torch.float32, NARROW, None, NARROW),
        (NARROW, torch.float32, NARROW, NARROW),
    ],
)
def test_precisions_of_either_side_work_together(
    silo: torch.dtype,
    trunk: torch.dtype,
    silo_casts: torch.dtype | None,
    trunk_casts: torch.dtype | None,
) -> None:
    """Loss within 1 % of float32's, and adapters that moved the same way (cosine above 0.9)."""
    pair = make_pair(tiny_model().to(silo), trunk_of=tiny_model().to(trunk), optimizer=CLIPPED)
    pair.engine.trunk.autocast = trunk_casts
    exact = make_pair(optimizer=CLIPPED)
    assert train_split(pair, silo_casts) == pytest.approx(train_split(exact), rel=0.01)
    moved, expected = (
        torch.cat([(tensor - p.state[name]).flatten() for name, tensor in adapter(p).items()])
        for p in (pair, exact)
    )
    assert float(torch.cosine_similarity(moved, expected, dim=0)) > 0.9


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize(("silo", "trunk"), [(NARROW, torch.float32), (torch.float32, NARROW)])
def test_each_side_gets_its_own_dtype(
    silo: torch.dtype, trunk: torch.dtype, pipelined: bool
) -> None:
    pair = make_pair(tiny_model().to(silo), trunk_of=tiny_model().to(trunk))
    at_silo, at_trunk = dtypes_seen_by(pair.client), dtypes_seen_by(pair.engine.trunk)
    if pipelined:
        passage = SplitStages(pair.client).start(make_batch())
        passage.backward(passage.output().loss)
        passage.finish()
    else:
        pair.client(**make_batch()).loss.backward()
    assert at_silo == {silo}
    assert at_trunk == {trunk}


def dtypes_seen_by(model: nn.Module) -> set[torch.dtype]:
    """dtypes of hidden states and of their gradients, at the layers that `model` holds."""
    seen: set[torch.dtype] = set()

    def note(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for tensor in (*args, output):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                seen.add(tensor.dtype)
                if tensor.requires_grad:
                    tensor.register_hook(lambda grad: seen.add(grad.dtype))

    for module in model.modules():
        if type(module).__name__ == "LlamaDecoderLayer":
            module.register_forward_hook(note, with_kwargs=True)
    return seen


def on_meta() -> PreTrainedModel:
    """On `meta`, which like a GPU refuses to compute with tensors of the host."""
    model = tiny_model()
    model.set_attn_implementation("eager")  # the other one looks into its mask
    return model.to("meta", NARROW)


def test_a_trunk_computes_on_its_device_wherever_requests_come_from() -> None:
    _, trunk = split_model(on_meta(), 1, 2)
    engine = TrunkEngine(trunk)
    session = opened(engine, replace(engine.describe(), dtype="float32"), None)
    hidden, mask = torch.randn(2, 5, 32), torch.ones(2, 5, dtype=torch.bool)
    request = ForwardRequest(
        step=0,
        microbatch=0,
        hidden=hidden,
        attention_mask=mask,
        position_ids=torch.arange(5)[None],
        keep_graph=True,
    )
    replies = [
        session.forward(request),
        session.backward(BackwardRequest(step=0, microbatch=0, grad=hidden)),
    ]
    for reply in replies:
        assert reply is not None
        assert (reply.device.type, reply.dtype) == ("meta", torch.float32)


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_silo_computes_on_its_device_wherever_replies_come_from(pipelined: bool) -> None:
    pair = make_pair(on_meta(), trunk_of=tiny_model())
    transport = HostTransport(pair.transport)
    attach_trunk(pair.client, transport)
    batch = {name: tensor.to("meta") for name, tensor in make_batch().items()}
    if pipelined:
        passage = SplitStages(pair.client).start(batch)
        loss = passage.output().loss
        passage.backward(loss)
        passage.finish()
    else:
        loss = pair.client(**batch).loss
        loss.backward()
    transport.close()
    assert loss.device.type == "meta"
    own = dict(adapter_parameters(pair.client))
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in own.values())
    assert transport.asked == [("forward", 0), ("backward", 0)]


class HostTransport(LateTransport):
    """Answers with zeros on the host, as a trunk behind a wire would."""

    def forward(self, request: ForwardRequest) -> Future[Tensor]:
        return self._zeros("forward", request.hidden)

    def backward(self, request: BackwardRequest) -> Future[Tensor | None]:
        return self._zeros("backward", request.grad)

    def _zeros(self, what: str, like: Tensor) -> Future[Any]:
        assert like.dtype is NARROW
        self.asked.append((what, 0))
        answer: Future[Any] = Future()
        answer.set_result(torch.zeros(like.shape, dtype=like.dtype))
        return answer


def test_a_silos_autocast_is_not_the_trunks() -> None:
    """Also where both are in one thread: the trunk computes as it would behind a wire."""
    pair = make_pair(mode="frozen")
    trunk = pair.engine.trunk
    hidden = torch.randn(2, 5, trunk.hidden_size)
    alone = trunk(hidden)
    with autocasting(CPU, NARROW):
        assert torch.equal(trunk(hidden), alone)
    trunk.autocast = NARROW
    under = trunk(hidden)
    assert under.dtype == torch.float32
    assert not torch.equal(under, alone)
    with torch.autocast("cpu", enabled=False):
        assert torch.equal(trunk(hidden), under)


def test_generation_under_autocast_gives_the_uncut_models_tokens() -> None:
    pair = make_pair(tiny_model().to(NARROW))
    pair.engine.trunk.autocast = NARROW
    prompt = torch.tensor([[5, 6, 7, 8, 9]])
    with autocasting(CPU, NARROW), torch.no_grad():
        ours, theirs = (
            model.eval().generate(input_ids=prompt, max_new_tokens=8, do_sample=False)
            for model in (pair.client, pair.whole)
        )
    assert torch.equal(ours, theirs)


def test_a_tensor_of_another_dtype_than_the_sessions_is_refused() -> None:
    pair = make_pair(tiny_model().to(NARROW), trunk_of=tiny_model())
    session = opened(pair.engine, pair.transport.spec, None)
    hidden = torch.zeros(1, 2, 32)
    with pytest.raises(WireError, match=r"h1 is torch.float32, expected torch.bfloat16"):
        session.forward(ForwardRequest(step=0, microbatch=0, hidden=hidden))
    session.forward(ForwardRequest(step=0, microbatch=0, hidden=hidden.to(NARROW), keep_graph=True))
    with pytest.raises(WireError, match=r"g2 is torch.float32, expected torch.bfloat16"):
        session.backward(BackwardRequest(step=0, microbatch=0, grad=hidden))


@pytest.mark.medium
def test_the_exact_path_copies_nothing_at_the_border() -> None:
    pair = make_pair()
    border = TrunkBorder(pair.engine.trunk, pair.transport.spec)
    mask = torch.ones(2, 5, dtype=torch.bool)
    request = ForwardRequest(
        step=0, microbatch=0, hidden=torch.randn(2, 5, 32), attention_mask=mask
    )
    entered = border.enter(request)
    assert entered.hidden is request.hidden
    assert entered.attention_mask is mask
    assert border.incoming("g2", request.hidden, entered) is request.hidden
    left = border.outgoing("h2", request.hidden, entered)
    assert left.data_ptr() == request.hidden.data_ptr()
    silo = SiloBorder(pair.transport.spec)
    context = silo.context(request.hidden, step=0, microbatch=0, attention_mask=mask)
    assert silo.incoming("h2", request.hidden, context) is request.hidden
    left = silo.outgoing("h1", request.hidden, context)
    assert left.data_ptr() == request.hidden.data_ptr()


def test_steps_inside_an_autocast_that_stays_open_are_refused() -> None:
    """There torch computes the silo's half with the weights before the step."""
    pair = make_pair()
    adapter = find_remote(pair.client).adapter
    own = [tensor for tensor in pair.client.parameters() if tensor.requires_grad]

    def passes(*, cached: bool) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):
            adapter.use()
            with torch.no_grad():
                for tensor in own:
                    tensor.add_(0.0)
            adapter.use()

    passes(cached=False)
    with pytest.raises(ModelError, match="inside an autocast context that is still open"):
        passes(cached=True)
