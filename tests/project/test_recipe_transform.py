"""The recipe for a transform at the cut, followed from outside: one class and one entry point."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import opened
from hosting import hosting
from outside_package import installed, recipe, told
from pairs import Pair, make_batch, make_pair
from torch import Tensor

from flower_split.config.resuming import differences, settings
from flower_split.config.run_config import read_run_config
from flower_split.config.wire import WireConfig
from flower_split.errors import ConfigError, HandshakeError, TransformError
from flower_split.remote import SplitStages, attach_trunk
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.messages import ForwardRequest

BASE, GROUP = told(recipe("A transform at the cut"))
SOURCE = f"""
from {BASE.partition(":")[0]} import {BASE.partition(":")[2]} as Base

SEEN = []


class Doubled(Base):
    name = "doubled"
    hops = ("h1",)

    def outgoing(self, hop, tensor, context):
        return tensor * 2

    def incoming(self, hop, tensor, context):
        return tensor / 2


class NoG1(Base):
    name = "nog1"
    hops = ("g1",)
    ends = ("trunk",)

    def outgoing(self, hop, tensor, context):
        return tensor * 0


class First(Base):
    name = "first"

    def outgoing(self, hop, tensor, context):
        self.note("out", hop, tensor, context)
        return tensor

    def incoming(self, hop, tensor, context):
        self.note("in", hop, tensor, context)
        return tensor

    def note(self, way, hop, tensor, context):
        assert not tensor.requires_grad and tensor.dim() == 3
        mask = context.attention_mask
        real = None if mask is None else int(mask.sum())
        SEEN.append((self.end, way, self.name, hop, context.step, context.microbatch, real))


class Second(First):
    name = "second"


class Failing(Base):
    name = "failing"

    def incoming(self, hop, tensor, context):
        if hop == "h1":
            raise ValueError(f"a secret: {{tensor}}")
        return tensor


class Wider(Base):
    name = "wider"
    ends = ("silo",)

    def outgoing(self, hop, tensor, context):
        return tensor.double()


class Refusing(Base):
    name = "refusing"
    ends = ("trunk",)

    def __init__(self, spec, end):
        from flower_split.errors import ConfigError

        raise ConfigError("not with these cuts")
"""
ENTRIES = {
    "doubled": "Doubled",
    "nog1": "NoG1",
    "first": "First",
    "second": "Second",
    "failing": "Failing",
    "wider": "Wider",
    "refusing": "Refusing",
}


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Any]:
    with installed(tmp_path, "outside_transform", GROUP, ENTRIES, SOURCE) as module:
        yield module


@contextmanager
def in_process(pair: Pair) -> Iterator[Pair]:
    yield pair


@contextmanager
def over_grpc(pair: Pair) -> Iterator[Pair]:
    with (
        hosting(pair.engine) as server,
        GrpcTransport(server.address, pair.transport.spec) as transport,
    ):
        attach_trunk(pair.client, transport)
        yield pair


each_wire = pytest.mark.parametrize("wire", [in_process, over_grpc])
Wire = Callable[[Pair], Any]


def cut(*transforms: str) -> Pair:
    return make_pair(wire=WireConfig(transforms=transforms))


def taught(pair: Pair) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one microbatch through autograd."""
    pair.client.train()
    loss = pair.client(**make_batch()).loss
    loss.backward()
    return float(loss.detach()), gradients_of(pair)


def staged(pair: Pair) -> tuple[float, dict[str, Tensor]]:
    """The same, stage by stage."""
    pair.client.train()
    batch = make_batch()
    passage = SplitStages(pair.client).start({k: v for k, v in batch.items() if k != "labels"})
    output = passage.output(labels=batch["labels"])
    passage.backward(output.loss)
    passage.finish()
    return float(output.loss.detach()), gradients_of(pair)


def gradients_of(pair: Pair) -> dict[str, Tensor]:
    named = pair.client.named_parameters()
    return {name: one.grad for name, one in named if one.grad is not None}


@pytest.mark.medium
@each_wire
@pytest.mark.parametrize("train", [taught, staged])
def test_what_one_end_doubles_and_the_other_halves_is_what_it_was(
    plugin: Any, wire: Wire, train: Callable[[Pair], tuple[float, dict[str, Tensor]]]
) -> None:
    loss, expected = train(make_pair())
    with wire(cut("doubled")) as pair:
        found, gradients = train(pair)
    assert found == loss
    assert gradients.keys() == expected.keys()
    for name in expected:
        assert torch.equal(gradients[name], expected[name]), name


@pytest.mark.medium
@each_wire
def test_generation_passes_it_too(plugin: Any, wire: Wire) -> None:
    prompt = {"input_ids": make_batch()["input_ids"], "max_new_tokens": 5, "do_sample": False}
    prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
    prompt["attention_mask"][1, :2] = 0
    plain = make_pair().client.eval()
    with torch.no_grad():
        expected = plain.generate(**prompt)
    with wire(cut("doubled", "first")) as pair, torch.no_grad():
        assert torch.equal(pair.client.eval().generate(**prompt), expected)
    hops = {hop for _, _, _, hop, *_ in plugin.SEEN}
    assert hops == {"h1", "h2"}
    left = ("silo", "out", "first", "h1")
    assert [seen[-1] for seen in plugin.SEEN if seen[:4] == left] == [
        3 * (11 + new) - 2 for new in range(5)
    ]


@each_wire
def test_without_g1_the_bottom_learns_nothing(plugin: Any, wire: Wire) -> None:
    with wire(cut("nog1")) as pair:
        _, gradients = taught(pair)
    bottom = {name: grad for name, grad in gradients.items() if ".layers.0." in name}
    assert bottom and not any(grad.any() for grad in bottom.values())
    assert any(grad.any() for name, grad in gradients.items() if name not in bottom)


@each_wire
def test_the_order_is_kept_and_reversed_for_what_arrives(plugin: Any, wire: Wire) -> None:
    with wire(cut("first", "second")) as pair:
        taught(pair)
    real = int(make_batch()["attention_mask"].sum())
    expected = []
    for hop, sender, receiver in (
        ("h1", "silo", "trunk"),
        ("h2", "trunk", "silo"),
        ("g2", "silo", "trunk"),
        ("g1", "trunk", "silo"),
    ):
        expected += [(sender, "out", name, hop, 0, 0, real) for name in ("first", "second")]
        expected += [(receiver, "in", name, hop, 0, 0, real) for name in ("second", "first")]
    assert expected == plugin.SEEN


@pytest.mark.medium
@each_wire
def test_one_that_fails_fails_the_session_and_tells_nothing_of_the_tensor(
    plugin: Any, wire: Wire
) -> None:
    message = "transform 'failing' at the trunk, for h1, failed: ValueError"
    with wire(cut("failing")) as pair, pytest.raises(TransformError, match=message) as caught:
        taught(pair)
    assert "secret" not in str(caught.value)


@each_wire
def test_one_that_returns_another_dtype_fails_at_its_own_end(plugin: Any, wire: Wire) -> None:
    message = r"'wider' at the silo, for h1, returned torch\.float64 .* expected torch\.float32"
    with wire(cut("wider")) as pair, pytest.raises(TransformError, match=message):
        taught(pair)


def test_one_may_refuse_a_session(plugin: Any) -> None:
    with pytest.raises(HandshakeError, match=r"'refusing' refuses the session .*these cuts"):
        cut("refusing")


@pytest.mark.parametrize(
    ("ours", "theirs"), [((), ("first",)), (("first",), ()), (("first", "second"),) * 2]
)
def test_both_ends_must_have_the_same_list(
    plugin: Any, ours: tuple[str, ...], theirs: tuple[str, ...]
) -> None:
    pair = cut(*ours)
    different = pair.engine.describe()
    wire = WireConfig(transforms=theirs[::-1])
    with pytest.raises(HandshakeError, match=r"differ in wire\.transforms: "):
        opened(pair.engine, replace(different, wire=wire), None)
    with (
        hosting(pair.engine) as server,
        pytest.raises(HandshakeError, match=r"differ in wire\.transforms: "),
    ):
        GrpcTransport(server.address, replace(different, wire=wire))


def test_a_run_config_names_them_where_they_are_installed(plugin: Any) -> None:
    config = read_run_config({"model.name": "gpt2", "wire.transforms": "second, first"})
    assert config.wire.transforms == ("second", "first")
    plain = read_run_config({"model.name": "gpt2"})
    assert settings(plain)["wire.transforms"] == ""
    assert differences(settings(plain), settings(config)) == [
        "wire.transforms was '' and is 'second,first' now"
    ]


def test_a_run_config_does_not_where_they_are_not() -> None:
    with pytest.raises(ConfigError, match=r"wire\.transforms must be one of noise, not 'first'"):
        read_run_config({"model.name": "gpt2", "wire.transforms": "first"})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"first": "Second"}, "calls itself 'second'"),
        ({"first": "SEEN"}, "expected a class of flower_split's Transform"),
        ({"first": "absent"}, "cannot be imported"),
    ],
)
def test_one_that_is_of_no_use_is_named(
    tmp_path: Path, entries: dict[str, str], message: str
) -> None:
    with (
        installed(tmp_path, "outside_transform", GROUP, entries, SOURCE),
        pytest.raises(ConfigError, match=message),
    ):
        cut("first")


def test_a_refused_request_reaches_no_transform(plugin: Any) -> None:
    pair = cut("first")
    session = opened(pair.engine, pair.transport.spec, None)
    with pytest.raises(Exception, match="h1: hidden size"):
        session.forward(ForwardRequest(step=0, microbatch=0, hidden=torch.zeros(1, 2, 7)))
    assert plugin.SEEN == []
    session.close()
