"""DP-SGD over the cut equals that of the uncut model, example by example, before the noise."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from asking import AS_GRADIENTS
from late_transport import LateTransport
from pairs import LORA, Pair, make_batch, make_pair
from tiny_models import CASE_BY_NAME
from torch import Tensor

from flower_split.adapters import adapter_parameters
from flower_split.config.sections import LoraSettings, WireConfig
from flower_split.errors import (
    AdapterError,
    HandshakeError,
    SequenceError,
    TrunkBusyError,
    WireError,
)
from flower_split.privacy import PrivacySettings
from flower_split.remote import SplitAdamW, SplitStages, attach_trunk, find_remote
from flower_split.training import Accumulator
from flower_split.training.clipped import example_losses
from flower_split.transport.messages import BackwardRequest, ForwardRequest, StepRequest

NEXT_TO_NONE = 1e-9
"""Noise that no comparison sees."""
CLIP = 0.05


def private(noise: float = NEXT_TO_NONE, clip: float = CLIP, expected: int = 4) -> PrivacySettings:
    return PrivacySettings(noise=noise, clip=clip, expected_batch=expected)


def batches(*rows: int) -> list[dict[str, Tensor]]:
    return [make_batch(count, 6 + number, seed=number) for number, count in enumerate(rows)]


def one_by_one(model: Any, microbatches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Σ_i g_i min(1, C / |g_i|) / L of the uncut model, every example computed alone."""
    model.eval()
    trained = {n: p for n, p in adapter_parameters(model) if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in trained.items()}
    clipped = 0
    for batch in microbatches:
        for row in range(len(batch["labels"])):
            alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
            labels = alone.pop("labels")
            loss = example_losses(model(**alone).logits, labels)[0].sum()
            own = torch.autograd.grad(loss, list(trained.values()))
            norm = torch.stack([g.norm() for g in own]).norm()
            clipped += bool(norm > CLIP)
            for name, gradient in zip(trained, own, strict=True):
                total[name] += gradient * min(1.0, CLIP / float(norm))
    assert clipped > 0
    return {name: held / 4 for name, held in total.items()}


def over_the_cut(
    pair: Pair, microbatches: list[dict[str, Tensor]], *, depth: int = 1
) -> dict[str, Tensor]:
    """The gradient of one step, which both sides take."""
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    pair.client.eval()
    stages = SplitStages(pair.client)
    Accumulator(pair.client, stages=stages, in_flight=depth, clipped=True).add(microbatches)
    optimizer.step()
    optimizer.zero_grad()
    own = {
        name: optimizer.state[p]["exp_avg"]
        for name, p in adapter_parameters(pair.client)
        if p.requires_grad
    }
    if pair.engine.mode == "frozen":
        return own
    moments = pair.trunk_moments().items()
    return own | {n.removesuffix("/exp_avg"): t for n, t in moments if n.endswith("/exp_avg")}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        apart = (found[name] - tensor).abs().max()
        assert apart <= 1e-5 * tensor.abs().max() + 1e-9, name


@pytest.mark.parametrize("rows", [(4,), (3, 1, 2), (1,)])
def test_a_step_is_that_of_the_uncut_model(rows: tuple[int, ...]) -> None:
    pair = make_pair(optimizer=AS_GRADIENTS, privacy=private())
    expected = one_by_one(pair.whole, batches(*rows))
    assert_close(over_the_cut(pair, batches(*rows)), expected)


@pytest.mark.parametrize("case", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("cuts", [(0, 0), (1, 2)])
@pytest.mark.sampled(keep=1)
def test_other_families_and_cuts(case: str, cuts: tuple[int, int]) -> None:
    model = CASE_BY_NAME[case].model()
    pair = make_pair(model, cuts=cuts, optimizer=AS_GRADIENTS, privacy=private())
    expected = one_by_one(pair.whole, batches(2, 2))
    assert_close(over_the_cut(pair, batches(2, 2)), expected)


@pytest.mark.parametrize("depth", [2, 4])
def test_microbatches_in_flight_change_nothing(depth: int) -> None:
    pair = make_pair(optimizer=AS_GRADIENTS, privacy=private())
    expected = one_by_one(pair.whole, batches(2, 3, 1, 2))
    transport = LateTransport(pair.transport)
    attach_trunk(pair.client, transport)
    try:
        assert_close(over_the_cut(pair, batches(2, 3, 1, 2), depth=depth), expected)
    finally:
        transport.close()


def test_a_frozen_trunk_leaves_the_silos_part_alone() -> None:
    pair = make_pair(mode="frozen", optimizer=AS_GRADIENTS, privacy=private())
    found = over_the_cut(pair, batches(3, 2))
    trained = {n for n, p in adapter_parameters(pair.client) if p.requires_grad}
    assert found.keys() == trained
    norm = torch.stack([g.norm() for g in found.values()]).norm()
    assert 0 < norm <= 5 * CLIP / 4


@pytest.mark.parametrize("rows", [(), (4, 4)])
def test_noise_is_on_every_tensor_of_both_sides_and_on_a_step_without_examples(
    rows: tuple[int, ...],
) -> None:
    lora = LoraSettings(r=16, alpha=8.0)
    pair = make_pair(lora=lora, optimizer=AS_GRADIENTS, privacy=private(noise=2e3, expected=8))
    found = over_the_cut(pair, batches(*rows))
    assert found.keys() == pair.state.keys()
    deviation = 2e3 * CLIP / 8
    for name, tensor in found.items():
        assert float(tensor.std()) == pytest.approx(deviation, rel=0.25), name
    everything = torch.cat([tensor.flatten() for tensor in found.values()])
    assert float(everything.std()) == pytest.approx(deviation, rel=0.02)


def test_two_steps_never_have_the_same_noise_and_one_without_examples_moves_the_adapter() -> None:
    pair = make_pair(optimizer=AS_GRADIENTS, privacy=private(noise=1.0))
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    seen = []
    for _ in range(2):
        optimizer.step()
        seen.append(torch.cat([s["exp_avg"].flatten() for s in optimizer.state.values()]))
    assert bool((seen[0] != seen[1]).all()) and find_remote(pair.client).steps == 2


def test_a_discarded_step_is_forgotten_on_both_sides() -> None:
    pair = make_pair(optimizer=AS_GRADIENTS, privacy=private())
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    pair.client.eval()
    stages = SplitStages(pair.client)
    Accumulator(pair.client, stages=stages, in_flight=1, clipped=True).add(batches(3, 3))
    optimizer.zero_grad()
    expected = one_by_one(pair.whole, batches(2))
    assert_close(over_the_cut(pair, batches(2)), expected)


def test_a_shared_trunk_steps_what_has_noise() -> None:
    pair = make_pair(mode="shared", optimizer=AS_GRADIENTS, privacy=private(noise=10.0))
    over_steps(pair)
    state = pair.trained_trunk()
    assert all(bool((state[name] != pair.trunk_state[name]).all()) for name in state)


def over_steps(pair: Pair) -> None:
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    optimizer.step()


def test_the_silo_never_gives_more_than_the_bound_whatever_the_trunk_tells() -> None:
    pair = make_pair(optimizer=AS_GRADIENTS, privacy=private())
    remote = find_remote(pair.client)
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    assert remote.clipping is not None
    record = remote.clipping.rows.record(2, torch.device("cpu"))
    for parameter in remote.clipping.rows.parameters:
        record.add(parameter, torch.ones(2, *parameter.shape))
    with pytest.raises(WireError, match="squared norm number 1 is -1"):
        remote.clipping.clip(record, [0.0, -1.0])
    with pytest.raises(WireError, match="1 squared norms of 2 examples"):
        remote.clipping.clip(record, [0.0])
    remote.clipping.clip(record, [0.0, 0.0])
    optimizer.step()
    own = torch.cat([s["exp_avg"].flatten() for s in optimizer.state.values()])
    assert float(own.norm()) <= 2 * CLIP / 4 + 1e-6


def test_backward_of_a_loss_is_refused_and_says_what_works() -> None:
    pair = make_pair(privacy=private())
    SplitAdamW(pair.client, lr=1e-2)
    with pytest.raises(AdapterError, match=r"session.accumulate\(\)"):
        pair.client(**make_batch())


def test_gradients_that_came_otherwise_are_refused() -> None:
    pair = make_pair(privacy=private())
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    _, parameter = next((n, p) for n, p in adapter_parameters(pair.client) if p.requires_grad)
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(AdapterError, match="1 of the silo's tensors have gradients that were not"):
        optimizer.step()


def test_tensors_that_were_changed_otherwise_are_refused() -> None:
    pair = make_pair(mode="frozen", privacy=private())
    optimizer = SplitAdamW(pair.client, lr=1e-2)
    optimizer.step()
    with torch.no_grad():
        next(p for _, p in adapter_parameters(pair.client) if p.requires_grad).add_(1)
    with pytest.raises(AdapterError, match=r"changed.*otherwise"):
        find_remote(pair.client).finish()


def test_dropout_and_a_missing_optimizer_are_refused() -> None:
    pair = make_pair(privacy=private())
    stages = SplitStages(pair.client)
    batch = {k: v for k, v in make_batch().items() if k != "labels"}
    with pytest.raises(AdapterError, match="SplitAdamW"):
        stages.start(batch)
    SplitAdamW(pair.client, lr=1e-2)
    pair.client.train()
    with pytest.raises(AdapterError, match=r"model.eval\(\)"):
        stages.start(batch)


def test_a_family_that_mixes_rows_is_refused_on_both_sides() -> None:
    model = CASE_BY_NAME["mixtral"].model()
    lora = LoraSettings(target_modules=("q_proj",))
    with pytest.raises(HandshakeError, match="privacy: it is not known that mixtral computes"):
        make_pair(model, lora=lora, privacy=private())


def test_a_module_that_is_given_rows_in_one_is_refused_by_name() -> None:
    pair = make_pair(CASE_BY_NAME["opt"].model(), privacy=private())
    with pytest.raises(AdapterError, match=r"fc1.lora_A.*lora.target-modules"):
        over_the_cut(pair, batches(2))


def test_trunk_parameters_are_refused() -> None:
    pair = make_pair(privacy=private())
    with pytest.raises(AdapterError, match="brings the trunk's gradients to the silo as sums"):
        attach_trunk(pair.client, pair.transport, trunk_parameters=True)


def test_another_session_leaves_nothing_of_the_earlier_one_at_the_layers() -> None:
    pair = make_pair(privacy=private())
    SplitAdamW(pair.client, lr=1e-2)
    earlier = find_remote(pair.client).clipping
    assert earlier is not None
    attach_trunk(pair.client, pair.transport)
    assert find_remote(pair.client).clipping is None
    weight = earlier.rows.parameters[0]
    module = next(m for m in pair.client.modules() if getattr(m, "weight", None) is weight)
    record = earlier.rows.record(3, torch.device("cpu"))
    with earlier.rows.recording(record):
        module(torch.ones(3, 2, weight.shape[1])).sum().backward()
    assert record.total(weight) is None


HIDDEN = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(3))


def held(transport: Any, microbatch: int = 0) -> Any:
    forward = ForwardRequest(step=0, microbatch=microbatch, hidden=HIDDEN, keep_graph=True)
    transport.forward(forward).result()
    backward = BackwardRequest(step=0, microbatch=microbatch, grad=HIDDEN, adapter_grad="hold")
    return transport.backward(backward).result()


def test_the_trunk_refuses_what_would_not_be_clipped() -> None:
    forward = ForwardRequest(step=0, microbatch=0, hidden=HIDDEN, keep_graph=True)
    pair = make_pair(privacy=private())
    pair.transport.forward(forward).result()
    with pytest.raises(SequenceError, match="gradients to add, in a session whose examples"):
        pair.transport.backward(BackwardRequest(step=0, microbatch=0, grad=HIDDEN)).result()
    pair = make_pair(privacy=private())
    reply = held(pair.transport)
    assert len(reply.squared_norms) == 2 and all(norm > 0 for norm in reply.squared_norms)
    with pytest.raises(SequenceError, match="microbatch 0 were not weighed"):
        pair.transport.step(StepRequest(step=0, learning_rate=0.1)).result()
    pair = make_pair(privacy=private())
    held(pair.transport)
    pair.transport.weigh(0, (1.0, 1.5))
    with pytest.raises(WireError, match="2 factors from 0 to 1"):
        pair.transport.step(StepRequest(step=0, learning_rate=0.1)).result()
    pair = make_pair(privacy=private())
    with pytest.raises(SequenceError, match="scales, clips or keeps"):
        pair.transport.step(StepRequest(step=0, learning_rate=0.1, scale=2.0)).result()
    pair = make_pair()
    with pytest.raises(SequenceError, match="not held by row"):
        held(pair.transport)


def test_so_many_microbatches_are_held_as_may_be_in_flight() -> None:
    pair = make_pair(privacy=private())
    for number in range(pair.engine.limits.max_in_flight):
        held(pair.transport, number)
    with pytest.raises(Exception, match="wait to be weighed"):
        held(pair.transport, 99)


def test_rows_whose_gradients_would_fill_the_memory_are_refused_before_they_are_computed() -> None:
    pair = make_pair(privacy=private())
    pair.engine.queue.memory.max_bytes = 1 << 20
    many = HIDDEN[:1, :1].expand(2048, 1, 32)
    request = ForwardRequest(step=0, microbatch=0, hidden=many, keep_graph=True)
    with pytest.raises(TrunkBusyError, match="GB of memory"):
        pair.transport.forward(request).result()
    plain = make_pair()
    plain.engine.queue.memory.max_bytes = 1 << 26
    plain.transport.forward(request).result()


def test_coarse_codecs_and_noise_at_the_cuts_go_along() -> None:
    wire = WireConfig(h1="int8", g2="int8")
    pair = make_pair(optimizer=AS_GRADIENTS, privacy=private(), wire=wire)
    found = over_the_cut(pair, batches(3))
    norm = torch.stack([g.norm() for g in found.values()]).norm()
    assert 0 < norm <= 3 * CLIP / 4 and LORA.r == 4
