"""Microbatches in flight change no number: every depth equals depth 1 and the uncut model."""

import gc
import weakref
from typing import Any

import pytest
import torch
from asking import AS_GRADIENTS
from hosting import eventually, nothing_left
from hypothesis import given, settings
from hypothesis import strategies as st
from late_transport import LateTransport
from pairs import LORA, Pair, make_batch, make_pair
from tiny_models import CASE_BY_NAME, CASES, Case, attentions, tiny_model
from torch import Tensor

from flower_split.adapters import adapter_parameters, read_state
from flower_split.config.sections import LoraSettings, TrainConfig
from flower_split.errors import DivergenceError, ModelError, TrunkError, TrunkUnavailableError
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote import RemoteTrunk, SplitAdamW, SplitStages, attach_trunk
from flower_split.remote.trunk import find_remote
from flower_split.segments import Halves
from flower_split.training import evaluate, train_round
from flower_split.training.accumulation import accumulate
from flower_split.transport.messages import SessionLimits

DEPTHS = (1, 2, 4, 8)


def batches(count: int) -> list[dict[str, Tensor]]:
    """Microbatches of different lengths, padded right, left or not at all, one with positions."""
    found = [make_batch(3, 9 + number % 4, seed=number) for number in range(count)]
    for number, batch in enumerate(found):
        if number % 4 == 1:
            del batch["attention_mask"]
            batch["labels"] = batch["input_ids"]
        elif number % 4 == 2:
            found[number] = {name: tensor.flip(1) for name, tensor in batch.items()}
        elif number % 4 == 3:
            batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None] // 2
    return found


def late(pair: Pair, seed: int = 0, **options: Any) -> LateTransport:
    """Put a late transport between the two."""
    transport = LateTransport(pair.transport, seed, **options)
    attach_trunk(pair.client, transport)
    return transport


def train(
    pair: Pair, config: TrainConfig, count: int, *, seed: int | None, pipelined: bool = True
) -> tuple[Any, dict[str, Tensor]]:
    """Metrics and adapters after a round; with a seed, the trunk answers at random times."""
    transport = None if seed is None else late(pair, seed)
    try:
        metrics = train_round(
            pair.client,
            SplitAdamW(pair.client, lr=0.0),
            batches(count),
            config,
            stages=SplitStages(pair.client) if pipelined else None,
            seed=7,
        )
    finally:
        if transport is not None:
            transport.close()
    state = read_state(pair.client) | pair.trained_trunk()
    return (metrics.loss, metrics.grad_norm, metrics.tokens, metrics.steps), state


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def config_with(**options: Any) -> TrainConfig:
    return TrainConfig(**{"learning_rate": 0.01, "max_grad_norm": 0.05, **options})


@pytest.mark.sampled(keep=3)
@pytest.mark.medium
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_round_equals_the_uncut_model_to_the_bit(depth: int, max_grad_norm: float) -> None:
    config = config_with(
        accumulation=8, local_epochs=2, in_flight=depth, max_grad_norm=max_grad_norm
    )
    pair = make_pair(optimizer=OptimizerSettings.of_training(config))
    trained = [p for p in pair.whole.parameters() if p.requires_grad]
    plain = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    whole = train_round(pair.whole, plain, batches(11), config)
    found, state = train(pair, config, 11, seed=depth)
    assert found == (whole.loss, whole.grad_norm, whole.tokens, whole.steps)
    assert_same(state, read_state(pair.whole))
    assert any(not torch.equal(state[name], pair.state[name]) for name in state)


@pytest.mark.exhaustive
@settings(max_examples=12, deadline=None)
@given(
    depth=st.sampled_from((*DEPTHS, 0)),
    accumulation=st.integers(1, 8),
    count=st.integers(1, 9),
    mode=st.sampled_from(("federated", "shared", "frozen")),
    cuts=st.sampled_from(((1, 2), (0, 1), (2, 0), (0, 0))),
    family=st.sampled_from(("gpt2", "llama")),
    seed=st.integers(0, 2**16),
)
def test_no_timing_changes_anything(
    depth: int, accumulation: int, count: int, mode: str, cuts: Any, family: Any, seed: int
) -> None:
    """With dropout in the model and in its adapters, against the loop without stages."""
    config = config_with(accumulation=accumulation, in_flight=depth, weight_decay=0.01)

    def pair() -> Pair:
        return make_pair(
            tiny_model(family).eval(),
            cuts=cuts,
            mode=mode,
            lora=LoraSettings(r=4, alpha=8.0, dropout=0.2),
            optimizer=OptimizerSettings.of_training(config),
        )

    if cuts == (0, 0) and mode == "frozen":
        return  # nothing is trained
    with nothing_left():
        expected = train(pair(), config, count, seed=None, pipelined=False)
        found = train(pair(), config, count, seed=seed)
    assert found[0] == expected[0]
    assert_same(found[1], expected[1])


@pytest.mark.medium
def test_dropout_is_there_and_follows_the_seed() -> None:
    losses = set()
    for seed in (1, 1, 2):
        pair = make_pair(tiny_model("gpt2").eval(), lora=LoraSettings(r=4, dropout=0.2))
        metrics = train_round(
            pair.client,
            SplitAdamW(pair.client, lr=0.0),
            batches(2),
            config_with(accumulation=2, learning_rate=0.0, max_grad_norm=0.0),
            stages=SplitStages(pair.client),
            seed=seed,
        )
        losses.add(metrics.loss)
    pair.client.eval()
    losses.add(accumulate(pair.client, batches(2), stages=SplitStages(pair.client)).loss)
    assert len(losses) == 3


@pytest.mark.sampled(keep=4)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_family_has_the_uncut_models_gradients(case: Case) -> None:
    # PEFT has no LoRA for the experts of a mixture, which are no linear layers.
    experts = "num_experts_per_tok" in case.values
    lora = LoraSettings(target_modules=("q_proj", "o_proj")) if experts else LORA
    model = case.model(attentions(case)[-1])
    pair = make_pair(model, cuts=(1, 1), lora=lora, optimizer=AS_GRADIENTS)
    transport = late(pair, pause=0.0005)
    try:
        ours = accumulate(
            pair.client, batches(4), stages=SplitStages(pair.client), depth=3, seeds=[1, 2, 3, 4]
        )
    finally:
        transport.close()
    whole = accumulate(pair.whole, batches(4))
    assert (ours.loss, ours.tokens) == (whole.loss, whole.tokens)
    expected = {n: p.grad for n, p in adapter_parameters(pair.whole)}
    found = {n: p.grad for n, p in adapter_parameters(pair.client)} | pair.trunk_gradients()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient is not None and torch.equal(gradient, found[name]), name


@pytest.mark.medium
@pytest.mark.parametrize("depth", [1, 3, 0])
def test_an_evaluation_in_flight_equals_one_at_a_time(depth: int) -> None:
    pair = make_pair()
    expected = evaluate(make_pair().client, batches(6))
    transport = late(pair)
    try:
        found = evaluate(pair.client, batches(6), stages=SplitStages(pair.client), depth=depth)
    finally:
        transport.close()
    assert found == expected == evaluate(pair.whole, batches(6))
    assert eventually(lambda: pair.engine.queue.budget.kept == 0)


def test_requests_run_ahead_by_the_depth_and_no_further() -> None:
    pair = make_pair()
    transport = late(pair)
    accumulate(pair.client, batches(6), stages=SplitStages(pair.client), depth=3)
    transport.close()
    assert transport.asked[:3] == [("forward", number) for number in range(3)]
    on_their_way = most = 0
    for kind, _ in transport.asked:
        on_their_way += 1 if kind == "forward" else -1
        most = max(most, on_their_way)
    assert most == 3
    for kind in ("forward", "backward"):
        assert [number for what, number in transport.asked if what == kind] == list(range(6))


def test_the_trunks_limit_is_respected() -> None:
    pair = make_pair(limits=SessionLimits(max_in_flight=2))
    stages = SplitStages(pair.client)
    assert stages.max_in_flight == 2
    accumulate(pair.client, batches(6), stages=stages, depth=8)


class _Watching:
    """Counts what the bottom's layer has computed and is alive, whenever it computes."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.most = 0
        layer.register_forward_hook(self._note)

    def _note(self, layer: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        self.alive.add(output)
        self.most = max(self.most, len(self.alive))


@pytest.mark.parametrize("depth", [1, 3])
def test_the_silo_holds_the_activations_of_depth_microbatches(depth: int) -> None:
    pair = make_pair()
    watching = _Watching(pair.client.get_submodule("base_model.model.model.layers.0"))
    gc.disable()  # what is freed late is not held to be freed
    try:
        accumulate(pair.client, batches(8), stages=SplitStages(pair.client), depth=depth)
    finally:
        gc.enable()
    assert watching.most == depth
    assert not watching.alive


@pytest.mark.medium
def test_the_other_ways_to_call_the_model_stay_as_they_are() -> None:
    pair = make_pair()
    stages = SplitStages(pair.client)
    accumulate(pair.client, batches(2), stages=stages, depth=2)
    with torch.no_grad():
        one = pair.client(**batches(1)[0]).logits
        prompt = batches(1)[0]["input_ids"][:1, :4]
        text = pair.client.generate(prompt, max_new_tokens=4, do_sample=False)
        assert torch.equal(one, pair.whole(**batches(1)[0]).logits)
        expected = pair.whole.generate(prompt, max_new_tokens=4, do_sample=False)
    assert torch.equal(text, expected)
    accumulate(pair.client, batches(2), stages=stages, depth=2)


class _Broken(LateTransport):
    """Fails at one request, as a lost connection does: everything in flight, and ever after."""

    def __init__(self, pair: Pair, kind: str, at: int) -> None:
        super().__init__(pair.transport)
        self._at = (kind, at)

    def _later(self, answer: Any) -> Any:
        if self._at in self.asked:
            answer = type(answer)()
            answer.set_exception(TrunkUnavailableError("the trunk is gone"))
        return super()._later(answer)


@pytest.mark.medium
@pytest.mark.parametrize(("kind", "at"), [("forward", 3), ("backward", 1), ("step", 0)])
def test_a_trunk_that_goes_leaves_no_half_step(kind: str, at: int) -> None:
    pair = make_pair()
    with nothing_left():
        transport = _Broken(pair, kind, at)
        attach_trunk(pair.client, transport)
        with pytest.raises(TrunkError, match="the trunk is gone"):
            train_round(
                pair.client,
                SplitAdamW(pair.client, lr=0.0),
                batches(6),
                config_with(accumulation=6, in_flight=4),
                stages=SplitStages(pair.client),
            )
        transport.close()
    assert_same(read_state(pair.client), pair.client_state)


@pytest.mark.medium
@pytest.mark.parametrize("error", [KeyboardInterrupt, DivergenceError])
def test_an_interruption_frees_both_parties(error: type[BaseException]) -> None:
    pair = make_pair()
    stages, calls = SplitStages(pair.client), 0

    def trouble(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error("stop")

    handle = pair.client.get_output_embeddings().register_forward_hook(trouble)
    optimizer = SplitAdamW(pair.client, lr=0.01)
    with nothing_left():
        transport = late(pair)
        with pytest.raises(error, match="stop"):
            train_round(
                pair.client,
                optimizer,
                batches(8),
                config_with(accumulation=8, in_flight=4),
                stages=stages,
            )
        transport.close()
    assert_same(read_state(pair.client), pair.client_state)
    assert eventually(lambda: pair.engine.queue.budget.kept == 0)
    assert transport.released
    assert_same(pair.trained_trunk(), pair.trunk_state)
    handle.remove()


def test_a_loss_that_is_not_finite_is_named() -> None:
    pair = make_pair()
    with torch.no_grad():
        pair.client.get_output_embeddings().weight[0, 0] = float("nan")
    with pytest.raises(DivergenceError, match=r"microbatch 1 of 4 is nan, at step 1 of 1"):
        train_round(
            pair.client,
            SplitAdamW(pair.client, lr=0.0),
            batches(4),
            config_with(accumulation=4, in_flight=4),
            stages=SplitStages(pair.client),
        )
    assert eventually(lambda: pair.engine.queue.budget.kept == 0)


@pytest.mark.medium
def test_a_tensor_of_both_halves_cannot_be_trained_in_stages() -> None:
    pair = make_pair(CASE_BY_NAME["llama-tied"].model(), cuts=(1, 1))
    pair.client.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ModelError, match=r"embed_tokens\.weight is trained and belongs to both"):
        SplitStages(pair.client)


def test_a_model_without_trunk_has_no_stages() -> None:
    with pytest.raises(ModelError, match="no trunk is attached"):
        SplitStages(tiny_model())
    with pytest.raises(ModelError, match="holds no stock model"):
        Halves(torch.nn.Linear(1, 1), find_remote(make_pair().client))


def test_modes_are_followed() -> None:
    pair = make_pair(tiny_model("gpt2").eval(), lora=LoraSettings(r=4, dropout=0.5))
    stages = SplitStages(pair.client)

    def loss(training: bool) -> float:
        pair.client.train(training)
        return accumulate(pair.client, batches(1), stages=stages, seeds=[1]).loss

    still, moved = loss(False), loss(True)
    assert still != moved
    assert loss(False) == still
    assert isinstance(find_remote(pair.client), RemoteTrunk)
