"""The recipe for a codec, followed from outside: one class and one entry point."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from affine_backend import AffineBackend, spec
from hosting import hosting
from outside_package import installed, recipe, told
from pairs import Pair, make_batch, make_pair
from raw_silo import RawSilo
from torch import Tensor, nn

from flower_split.compression.table import CODEC_TABLE
from flower_split.config.run_config import read_run_config
from flower_split.config.wire import WireConfig
from flower_split.errors import ConfigError, HandshakeError
from flower_split.remote import attach_trunk
from flower_split.transport.grpc.handshake import hello_frame
from flower_split.transport.grpc.transport import GrpcTransport

BASE, GROUP = told(recipe("A codec"))
SOURCE = f"""
import math

import torch

from flower_split.compression.codec import as_bytes
from {BASE.partition(":")[0]} import {BASE.partition(":")[2]} as Base


class Fixed(Base):
    name = "fixed"
    wire = 1000

    def encode(self, tensor):
        return as_bytes((tensor.detach().float() * 1024).round().clamp(-32768, 32767).short())

    def decode(self, payload, shape, dtype):
        return (payload.view(torch.int16).reshape(tuple(shape)).float() / 1024).to(dtype)

    def encoded_bytes(self, shape):
        return 2 * math.prod(shape)


class Renamed(Fixed):
    name = "other"


class Rival(Fixed):
    name = "rival"


class Low(Fixed):
    name = "low"
    wire = 7


class Fp32(Fixed):
    name = "fp32"
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Any]:
    with installed(tmp_path, "outside_codec", GROUP, {"fixed": "Fixed"}, SOURCE) as module:
        yield module


class _Fixed(torch.autograd.Function):
    """What the codec does to a tensor and to its gradient, by hand."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return (tensor * 1024).round().clamp(-32768, 32767) / 1024

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return (grad * 1024).round().clamp(-32768, 32767) / 1024


def by_hand() -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the uncut model, rounded where the cuts (1, 2) of 5 layers are."""
    whole = make_pair().whole

    def rounded(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (_Fixed.apply(output[0]), *output[1:])
        return _Fixed.apply(output)

    for number in (0, 2):
        whole.get_submodule(f"base_model.model.model.layers.{number}").register_forward_hook(
            rounded
        )
    return taught(whole)


def taught(model: nn.Module) -> tuple[float, dict[str, Tensor]]:
    model.train()
    loss = model(**make_batch()).loss
    loss.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not name.endswith("trunk_gradient")
    }
    return float(loss.detach()), gradients


def same(pair: Pair) -> None:
    expected_loss, expected = by_hand()
    loss, gradients = taught(pair.client)
    assert loss == expected_loss
    assert gradients
    for name, gradient in gradients.items():
        number = next((part for part in name.split(".") if part.isdigit()), "")
        assert number in ("0", "3", "4")
        assert torch.equal(gradient, expected[name]), name


def test_a_codec_of_another_package_compresses_as_by_hand(plugin: Any) -> None:
    pair = make_pair(wire=WireConfig.uniform("fixed"))
    same(pair)
    hidden = 3 * 11 * 32
    assert pair.transport.wire_bytes["h1"] == pair.transport.wire_bytes["g1"] == 2 * hidden


@pytest.mark.medium
def test_it_does_so_over_grpc(plugin: Any) -> None:
    pair = make_pair(wire=WireConfig.uniform("fixed"))
    with (
        hosting(pair.engine) as server,
        GrpcTransport(server.address, pair.transport.spec) as transport,
    ):
        attach_trunk(pair.client, transport)
        same(pair)


def test_a_run_config_names_it_where_it_is_installed(plugin: Any) -> None:
    given = {"model.name": "gpt2", "wire.h1": "fixed"}
    assert read_run_config(given).wire.h1 == "fixed"


def test_a_run_config_does_not_where_it_is_not() -> None:
    with pytest.raises(ConfigError, match=r"wire\.h1 must be one of fp32.*, not 'fixed'"):
        read_run_config({"model.name": "gpt2", "wire.h1": "fixed"})


def test_a_trunk_without_it_refuses_the_session_by_its_number(tmp_path: Path) -> None:
    with installed(tmp_path, "outside_codec", GROUP, {"fixed": "Fixed"}, SOURCE):
        agreed = spec(wire=WireConfig(g2="fixed"))
        assert hello_frame(agreed, None).hello.g2 == 1000
        hello = hello_frame(agreed, None)
    with hosting(AffineBackend()) as server, RawSilo(server.address) as silo:
        _, kind, details = silo.send(hello).ending()
    assert kind == HandshakeError.__name__
    assert "g2: unknown codec number 1000" in details and "both ends" in details


@pytest.mark.parametrize(
    ("entries", "asked", "message"),
    [
        ({"fixed": "Renamed"}, "fixed", "calls itself 'other'"),
        ({"fixed": "Fixed", "rival": "Rival"}, "fixed", "'fixed' and 'rival' both have.* 1000"),
        ({"low": "Low"}, "low", "number 7 on the wire, expected one from 1000"),
        ({"fp32": "Fp32"}, "fp32", "the name of one of flower_split's own"),
        ({"fixed": "math"}, "fixed", "expected a class of flower_split's Codec"),
        ({"fixed": "absent"}, "fixed", "cannot be imported"),
    ],
)
def test_a_codec_that_is_of_no_use_is_named(
    tmp_path: Path, entries: dict[str, str], asked: str, message: str
) -> None:
    with (
        installed(tmp_path, "outside_codec", GROUP, entries, SOURCE),
        pytest.raises(ConfigError, match=message),
    ):
        make_pair(wire=WireConfig(h1=asked))
    assert CODEC_TABLE.named("fp32").name == "fp32"
