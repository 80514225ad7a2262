"""Prompts and prefixes through a remote trunk: what PEFT does is that of the uncut model."""

import copy
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch
from pairs import make_batch, make_pair
from peft import (
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from tiny_models import CASE_BY_NAME, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from flower_split import GrpcTransport, LocalTransport, TrunkServer, attach_trunk, session_spec
from flower_split.config.sections import WireConfig
from flower_split.errors import (
    HandshakeError,
    ModelError,
    SequenceError,
    TrunkBusyError,
    TrunkError,
    WireError,
)
from flower_split.remote import SplitAdamW, SplitStages
from flower_split.segments import Family, split_model
from flower_split.server.compute.queue import BatchSettings
from flower_split.server.engine import TrunkEngine
from flower_split.training import evaluate
from flower_split.training.accumulation import accumulate
from flower_split.transforms import Transform
from flower_split.transforms.table import TRANSFORM_TABLE
from flower_split.transport.messages import CacheUse, ForwardRequest, SessionLimits

pytestmark = pytest.mark.medium

VIRTUAL = 3
METHODS: dict[str, Callable[[], Any]] = {
    "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL),
    "projected": lambda: PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=VIRTUAL,
        prefix_projection=True,
        encoder_hidden_size=7,
    ),
    "prompt": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL),
    "encoder": lambda: PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL, encoder_hidden_size=8
    ),
}
FIRST = ("llama-tied", "mistral", "gemma3_text")
FAMILIES = dict.fromkeys((*FIRST, *CASE_BY_NAME))
"""Those with heads of their own for keys and with windows first."""
NOT_WHOLE = ("falcon", "falcon-alibi")
"""PEFT makes no prefix for them, be they cut or not."""
RIGHT = make_batch()
LEFT = {name: tensor.flip(1) for name, tensor in RIGHT.items()}
PROMPT = {name: LEFT[name] for name in ("input_ids", "attention_mask")}


class Both:
    """A model with a prompt: uncut, and cut with a trunk behind a transport."""

    def __init__(
        self,
        method: str = "prefix",
        model: Callable[[], PreTrainedModel] = tiny_model,
        *,
        cuts: tuple[int, int] = (1, 2),
        connect: Callable[..., Any] = LocalTransport,
        engine: TrunkEngine | None = None,
        purpose: Any = "train",
        wire: WireConfig | None = None,
        **options: Any,
    ) -> None:
        torch.manual_seed(5)
        self.whole: Any = get_peft_model(model(), METHODS[method]()).eval()
        client, trunk = split_model(model(), *cuts)
        self.client: Any = get_peft_model(client, METHODS[method]()).eval()
        self.client.prompt_encoder.load_state_dict(self.whole.prompt_encoder.state_dict())
        self.engine = engine or TrunkEngine(trunk, **options)
        self.spec = session_spec(
            self.client, plan=None, trunk_adapters="frozen", purpose=purpose, wire=wire
        )
        self.transport = connect(self.engine, self.spec)
        attach_trunk(self.client, self.transport)
        self.stages = SplitStages(self.client)

    def assert_same_gradients(self, *, atol: float = 0.0) -> None:
        """And forget them."""
        for ours, theirs in zip(*map(encoder, (self.client, self.whole)), strict=True):
            assert theirs.grad is not None and ours.grad is not None and theirs.grad.any()
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=atol)
            ours.grad = theirs.grad = None


def encoder(model: Any) -> list[Any]:
    return list(model.prompt_encoder.parameters())


def many(count: int) -> list[dict[str, Tensor]]:
    found = [make_batch(1 + number % 3, 9 + number, seed=number) for number in range(count)]
    del found[1]["attention_mask"]
    return found


@pytest.mark.sampled(keep=6)
@pytest.mark.parametrize("cuts", [(1, 2), (0, 1), (2, 0)])
@pytest.mark.parametrize("method", METHODS)
def test_training_equals_that_of_the_uncut_model(method: str, cuts: tuple[int, int]) -> None:
    both = Both(method, cuts=cuts)
    atol = 0.0 if method in ("prefix", "prompt") else 1e-7
    for batch in (RIGHT, LEFT, make_batch(1), {"input_ids": RIGHT["input_ids"]}):
        batch = {"labels": batch["input_ids"], **batch}
        ours, theirs = (model(**batch) for model in (both.client, both.whole))
        assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.loss, theirs.loss)
        ours.loss.backward()
        theirs.loss.backward()
        both.assert_same_gradients(atol=atol)
        assert accumulate(both.client, [batch], stages=both.stages).loss == pytest.approx(
            accumulate(both.whole, [batch]).loss, abs=1e-7
        )
        both.assert_same_gradients(atol=1e-7)


@pytest.mark.sampled(keep=3)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NOT_WHOLE])
def test_it_does_with_every_family(name: str) -> None:
    both = Both(model=CASE_BY_NAME[name].model, cuts=(1, 1))
    for batch in (RIGHT, LEFT):
        losses = [model(**batch).loss for model in (both.client, both.whole)]
        assert torch.equal(*losses)
        for loss in losses:
            loss.backward()
        both.assert_same_gradients()
    with torch.no_grad():
        ours, theirs = (
            model.generate(**PROMPT, max_new_tokens=7, do_sample=False, num_beams=2)
            for model in (both.client, both.whole)
        )
    assert torch.equal(ours, theirs)


@pytest.mark.medium
@pytest.mark.sampled(keep=2)
@pytest.mark.parametrize("method", ["prefix", "prompt"])
@pytest.mark.parametrize("recompute", [False, True])
def test_microbatches_in_flight_over_grpc(method: str, recompute: bool) -> None:
    settings = BatchSettings(recompute=recompute, batching=True, gather_ms=1.0)
    _, trunk = split_model(tiny_model(), 1, 2)
    engine = TrunkEngine(trunk, batching=settings)
    with TrunkServer(engine) as server:
        sessions = [
            Both(method, engine=engine, connect=lambda _, spec: GrpcTransport(server.address, spec))
            for _ in range(2)
        ]
        for both in sessions:
            for _ in range(2):
                accumulate(both.client, many(5), stages=both.stages, depth=3)
                accumulate(both.whole, many(5))
                both.assert_same_gradients(atol=1e-6)
        counts = sessions[0].transport.wire_bytes
        passes = 10
        width, layers = 16, 2
        expected = passes * 2 * layers * VIRTUAL * width * 4 if method == "prefix" else 0
        assert counts["prefix"] == counts["prefix_grad"] == expected
        assert counts.upward == counts["h1"] + counts["g2"] + counts["context"] + expected
        for both in sessions:
            told = both.transport.finish().wire_bytes
            assert told == both.transport.wire_bytes
            both.transport.close()


def test_steps_of_both_are_the_same() -> None:
    both = Both("projected")
    optimizer = SplitAdamW(both.client, lr=0.05)
    stock = torch.optim.AdamW(encoder(both.whole), lr=0.05, weight_decay=0.0)
    for _ in range(4):
        for model, stepped in ((both.client, optimizer), (both.whole, stock)):
            stepped.zero_grad()
            model(**RIGHT).loss.backward()
            stepped.step()
    for ours, theirs in zip(*map(encoder, (both.client, both.whole)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_generation_disabling_and_evaluation(method: str) -> None:
    both = Both(method, purpose="evaluate")
    models = (both.client, both.whole)
    how: list[dict[str, Any]] = [{"num_beams": 3}, {"do_sample": True}]
    if method in ("prompt", "encoder"):  # PEFT's prefix needs a cache
        how.append({"use_cache": False})
    with torch.no_grad():
        for more in how:
            texts = []
            for model in models:
                torch.manual_seed(1)
                texts.append(model.generate(**PROMPT, max_new_tokens=9, **more))
            assert torch.equal(*texts)
        with both.client.disable_adapter(), both.whole.disable_adapter():
            assert torch.equal(*(model(**RIGHT).logits for model in models))
            assert torch.equal(*(model.generate(**PROMPT, max_new_tokens=4) for model in models))
            found = evaluate(both.client, [RIGHT, LEFT], stages=both.stages)
            assert found == evaluate(both.whole, [RIGHT, LEFT])
        plain, found = found, evaluate(both.client, [RIGHT, LEFT], stages=both.stages)
        assert found == evaluate(both.whole, [RIGHT, LEFT]) and found.loss != plain.loss
        assert torch.equal(*(model(**RIGHT).logits for model in models))
    with pytest.raises(ModelError, match="evaluation"):
        both.client(**RIGHT)


def test_a_prefix_is_sent_once_a_cache_and_in_one_row_for_all() -> None:
    both = Both()
    with torch.no_grad():
        both.client.generate(**PROMPT, max_new_tokens=6, do_sample=False)
    counts = both.transport.wire_bytes
    assert counts["prefix"] == 2 * 2 * VIRTUAL * 16 * 4 and counts["prefix_grad"] == 0
    caches = []
    for model in (both.client, both.whole):
        with torch.no_grad():
            torch.manual_seed(0)
            stepped = [model.get_prompt(3)]
            for layer in stepped[0].layers:
                layer.keys = layer.keys + torch.arange(3.0)[:, None, None, None]
            mask = torch.ones(3, VIRTUAL + 4)
            stepped.append(
                model.base_model(
                    RIGHT["input_ids"][:, :4], attention_mask=mask, past_key_values=stepped[0]
                ).logits
            )
            copied = copy.deepcopy(stepped[0])
            for cache in (stepped[0], copied):
                stepped.append(
                    model.base_model(RIGHT["input_ids"][:, 4:6], past_key_values=cache).logits
                )
        caches.append(stepped[1:])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*caches, strict=True))
    counted = both.transport.wire_bytes["prefix"] - counts["prefix"]
    assert counted == 3 * counts["prefix"]


@pytest.mark.parametrize("codec", ["bf16", "int8", "nf4"])
def test_codecs_round_the_prefix_as_they_round_h1(codec: str) -> None:
    both = Both(wire=WireConfig.uniform(codec))
    exact = Both()
    for one in (both, exact):
        one.client(**RIGHT).loss.backward()
    ours, theirs = (encoder(one.client)[0].grad for one in (both, exact))
    assert 0 < (ours - theirs).norm() < 0.5 * theirs.norm()
    counts, whole = both.transport.wire_bytes, exact.transport.wire_bytes
    assert counts["prefix"] == counts["prefix_grad"] < 0.6 * whole["prefix"]


def test_a_window_that_the_prefix_fills_is_refused() -> None:
    model = CASE_BY_NAME["gemma3_text"].model
    METHODS["long"] = lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
    try:
        both = Both("long", model, cuts=(1, 0))
    finally:
        del METHODS["long"]
    with pytest.raises(ModelError, match="fewer virtual tokens than a sliding window"):
        both.client(**RIGHT)


def test_gradient_checkpointing_works_with_prompts_and_is_refused_with_prefixes() -> None:
    both, prefixed = Both("prompt"), Both(cuts=(0, 1))
    for model in (both.client, both.whole, prefixed.client):
        model.train()
        model.base_model.gradient_checkpointing_enable({"use_reentrant": False})
    for model in (both.client, both.whole):
        model(**RIGHT).loss.backward()
    both.assert_same_gradients()
    accumulate(both.client, [RIGHT], stages=both.stages)
    accumulate(both.whole, [RIGHT])
    both.assert_same_gradients()
    for fails in (
        lambda: prefixed.client(**RIGHT),
        lambda: accumulate(prefixed.client, [RIGHT], stages=prefixed.stages),
    ):
        with pytest.raises(ModelError, match="does not work with gradient checkpointing"):
            fails()


def test_a_trunk_that_is_trained_takes_no_prefix() -> None:
    pair = make_pair()
    spec = replace(pair.transport.spec, prefix_tokens=VIRTUAL)
    with pytest.raises(HandshakeError, match=r"whose adapters are 'federated' takes no prefix"):
        LocalTransport(pair.engine, spec)


def test_layers_without_keys_take_no_prefix() -> None:
    sizes = {"intermediate_size": 64, "state_size": 4, "pad_token_id": 0, "hidden_size": 32}
    config = CONFIG_MAPPING["mamba"](vocab_size=97, num_hidden_layers=3, **sizes)
    proved = Family(model_type="mamba", after=("norm_f",))
    _, trunk = split_model(AutoModelForCausalLM.from_config(config), 1, 1, family=proved)
    engine = TrunkEngine(trunk)
    spec = replace(engine.describe(), prefix_tokens=VIRTUAL)
    with pytest.raises(HandshakeError, match=r"layers of this mamba trunk take no prefix"):
        LocalTransport(engine, spec)


def test_transforms_would_not_see_a_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    class Quiet(Transform):
        name = "quiet"

    monkeypatch.setattr(TRANSFORM_TABLE, "_own", {"quiet": Quiet})
    wire = WireConfig()
    object.__setattr__(wire, "transforms", ("quiet",))
    assert Both("prompt", wire=wire).spec.wire is wire
    with pytest.raises(HandshakeError, match=r"quiet .* a prefix would pass them by"):
        Both(wire=wire)


@pytest.mark.parametrize("own", [0, 4])
def test_a_host_says_which_prefix_a_session_has(own: int) -> None:
    with pytest.raises(
        HandshakeError, match=f"differ in prefix_tokens: the trunk has {own}, the silo 3"
    ):
        Both(prefix_tokens=own)
    assert Both(prefix_tokens=VIRTUAL).spec.prefix_tokens == VIRTUAL


def test_a_prefix_too_long_for_the_trunk_is_refused() -> None:
    with pytest.raises(HandshakeError, match=r"lower peft\.num-virtual-tokens"):
        Both(limits=SessionLimits(max_message_tokens=3))
    with pytest.raises(HandshakeError, match=r"3 for 4 layers are 384 numbers"):
        Both(cuts=(1, 0), limits=SessionLimits(max_message_tokens=11))
    both = Both(limits=SessionLimits(max_message_tokens=41))
    with pytest.raises(TrunkBusyError, match="3 x 11 tokens with 3 before each"):
        both.client(**RIGHT)


def test_a_filled_cache_of_another_length_is_refused() -> None:
    both = Both()
    other = get_peft_model(
        tiny_model(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    )
    with torch.no_grad(), pytest.raises(ModelError, match="opened for a prefix of 3"):
        both.client.base_model(RIGHT["input_ids"], past_key_values=other.get_prompt(3))
    plain = Both("prompt")
    both.client.prompt_encoder["default"] = other.prompt_encoder["default"]
    both.client.peft_config["default"].num_virtual_tokens = 5
    both.client.prompt_tokens["default"] = other.prompt_tokens["default"]
    with pytest.raises(ModelError, match="opened for a prefix of 3: open it after the client"):
        accumulate(both.client, [RIGHT], stages=SplitStages(both.client))
    with torch.no_grad(), pytest.raises(ModelError, match="needs a new DynamicCache"):
        plain.client.base_model(RIGHT["input_ids"], past_key_values=other.get_prompt(3))


def test_what_is_saved_of_a_client_model_is_whole(tmp_path: Any) -> None:
    for method in METHODS:
        both = Both(method)
        both.client.save_pretrained(tmp_path / method)
        loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / method).eval()
        ours, theirs = loaded(**RIGHT).logits, both.whole(**RIGHT).logits
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def request(both: Both, **changes: Any) -> ForwardRequest:
    cut = {"hidden": torch.zeros(2, 4, 32), "prefix": torch.zeros(4, VIRTUAL, 16)}
    return ForwardRequest(**{"step": 0, "microbatch": 0, **cut, **changes})


KEPT = CacheUse(cache_id=7, past_length=VIRTUAL)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prefix": torch.zeros(4, VIRTUAL + 1, 16)}, "4 tokens, the session's has 3"),
    ({"prefix": torch.zeros(6, VIRTUAL, 16)}, "expected 4 keys and values"),
    ({"prefix": torch.zeros(4, VIRTUAL, 8)}, "8 wide, the trunk's keys and values are 16"),
    ({"prefix": torch.full((4, VIRTUAL, 16), torch.nan)}, "NaN"),
    ({"prefix": torch.zeros(4, VIRTUAL, 16, dtype=torch.float64)}, "float64"),
    ({"cache": CacheUse(cache_id=7, past_length=0)}, "a cache of 0 tokens"),
    ({"attention_mask": torch.ones(2, 4, dtype=torch.bool)}, "expected \\(2, 7\\)"),
]


@pytest.mark.sampled(keep=4)
@pytest.mark.parametrize(("changes", "said"), WRONG)
def test_a_wrong_prefix_costs_its_silo_alone(changes: dict[str, Any], said: str) -> None:
    _, trunk = split_model(tiny_model(), 1, 2)
    with TrunkServer(TrunkEngine(trunk)) as server:
        for connect in (lambda _, spec: GrpcTransport(server.address, spec), LocalTransport):
            one, other = (Both(connect=connect) for _ in range(2))
            with pytest.raises(TrunkError, match=said):
                one.transport.forward(request(one, **changes)).result()
            other.client(**RIGHT).loss.backward()
            other.whole(**RIGHT).loss.backward()
            other.assert_same_gradients()


def test_a_prefix_begins_a_cache_and_no_other() -> None:
    both = Both("prompt")
    with pytest.raises(WireError, match="opened without one"):
        both.transport.forward(request(both)).result()
    both = Both()
    both.transport.forward(request(both, cache=KEPT)).result()
    with pytest.raises(SequenceError, match="cache 7 is known"):
        both.transport.forward(request(both, microbatch=1, cache=KEPT)).result()


class Lying:
    """A transport whose trunk gives another gradient for the prefix than it must."""

    def __init__(self, inner: Any, given: Tensor | None) -> None:
        self._inner, self._given = inner, given

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def backward(self, asked: Any) -> Future[Any]:
        reply = self._inner.backward(asked).result()
        future: Future[Any] = Future()
        given = replace(reply, prefix_grad=self._given)
        future.set_result(given if self._given is not None else reply.grad)
        return future


@pytest.mark.parametrize("given", [None, torch.zeros(4, VIRTUAL, 17), torch.zeros(8, VIRTUAL, 16)])
def test_a_wrong_gradient_of_the_prefix_is_refused(given: Tensor | None) -> None:
    both = Both()
    attach_trunk(both.client, Lying(both.transport, given))  # type: ignore[arg-type]
    with pytest.raises(WireError, match=r"prefix_grad: .*, expected"):
        accumulate(both.client, [RIGHT], stages=both.stages)
    if given is not None:
        with pytest.raises(WireError, match=r"prefix_grad: .*, expected"):
            both.client(**RIGHT).loss.backward()
    assert not any(parameter.grad is not None for parameter in encoder(both.client))
