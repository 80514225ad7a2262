"""Clipping and noise at the cuts: their arithmetic, and what they do not tell."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from affine_backend import spec
from torch import Tensor

from flower_split.config.wire import HOPS, WireConfig
from flower_split.errors import ConfigError, HandshakeError, TransformError
from flower_split.proto import trunk_pb2 as pb
from flower_split.server.handshake import check_spec
from flower_split.transforms import TransformChain, TransformContext
from flower_split.transforms.transform import End
from flower_split.transport.grpc.handshake import hello_frame, read_hello

HERE = TransformContext(
    step=0, microbatch=0, attention_mask=None, device=torch.device("cpu"), dtype=torch.float32
)
ROWS = 4, 512, 64


def chain(end: End = "silo", **wire: Any) -> TransformChain:
    return TransformChain(spec(wire=WireConfig(**wire)), end)


def left(tensor: Tensor, hop: str = "h1", end: End = "silo", **wire: Any) -> Tensor:
    return chain(end, **wire).outgoing(hop, tensor, HERE)


def rows(seed: int = 0) -> Tensor:
    return torch.randn(ROWS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("hop", HOPS)
def test_longer_rows_are_scaled_down_and_others_are_left(hop: str) -> None:
    tensor = rows() * torch.linspace(0, 3, ROWS[1])[:, None]
    found = left(tensor, hop, **{f"{hop}_clip": 8.0})
    norms = tensor.norm(dim=-1, keepdim=True)
    short = (norms <= 7.999).expand_as(tensor)
    assert short.any() and not short.all()
    assert torch.equal(found[short], tensor[short])
    torch.testing.assert_close(found[~short], (tensor * 8 / norms)[~short], rtol=1e-5, atol=0)
    assert float(found.double().norm(dim=-1).max()) <= 8.0


def test_other_hops_and_what_arrives_stay_as_they_are() -> None:
    tensor = rows()
    made = chain(h1_clip=1.0, h1_noise=1.0)
    assert torch.equal(made.outgoing("g2", tensor, HERE), tensor)
    assert torch.equal(made.incoming("h2", tensor, HERE), tensor)
    assert torch.equal(chain("trunk", h1_clip=1.0).incoming("h1", tensor, HERE), tensor)
    assert torch.equal(chain().outgoing("h1", tensor, HERE), tensor)


@pytest.mark.parametrize(("end", "hop"), [("silo", "g2"), ("trunk", "h2"), ("trunk", "g1")])
def test_noise_has_the_deviation_that_was_asked_for(end: End, hop: str) -> None:
    tensor = rows()
    kept = tensor.clone()
    wire = {f"{hop}_clip": 1e4, f"{hop}_noise": 2e-4}
    found = left(tensor, hop, end, **wire) - tensor
    count = found.numel()
    assert abs(float(found.std()) - 2.0) < 12 / math.sqrt(2 * count)
    assert abs(float(found.mean())) < 12 / math.sqrt(count)
    assert torch.equal(tensor, kept)


def test_rows_of_nothing_get_the_same_noise_as_all_others() -> None:
    """Those of padding and prompts cannot be told from rows that are far below the noise."""
    tensor = 1e-3 * rows()
    tensor[:, ::2] = 0
    found = left(tensor, "g2", g2_clip=1.0, g2_noise=1.0)
    assert bool((found != 0).all())
    empty, others = found[:, ::2], found[:, 1::2]
    assert abs(float(empty.std() - others.std())) < 12 / math.sqrt(empty.numel())


def test_noise_is_new_each_time_and_for_each_session() -> None:
    made = chain(h1_clip=1.0, h1_noise=1.0)
    tensor = rows()
    drawn = [made.outgoing("h1", tensor, HERE) for _ in range(2)]
    drawn.append(left(tensor, h1_clip=1.0, h1_noise=1.0))
    for one in range(3):
        for other in range(one):
            apart = (drawn[one] - drawn[other]).flatten()
            assert abs(float(apart.std()) - math.sqrt(2)) < 0.02


def test_low_precision_gets_noise_before_it_is_rounded() -> None:
    tensor = rows().bfloat16()
    found = left(tensor, h1_clip=100.0, h1_noise=0.01)
    assert found.dtype == torch.float32  # the session's
    half = replace(HERE, dtype=torch.bfloat16)
    wire = WireConfig(h1_clip=100.0, h1_noise=0.01)
    made = TransformChain(spec(wire=wire, dtype="bfloat16"), "silo")
    noisy = made.outgoing("h1", tensor, half)
    assert noisy.dtype == torch.bfloat16
    assert abs(float((noisy.float() - tensor.float()).std()) - 1) < 0.05


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_no_clipping_bounds_does_not_leave(value: float) -> None:
    tensor = rows()
    tensor[0, 3, 5] = value
    with pytest.raises(TransformError, match="h1 holds numbers that are not finite"):
        left(tensor, h1_clip=1.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"h1_noise": 1.0}, r"wire\.h1-noise is 1 times wire\.h1-clip, which is 0"),
        ({"g2_clip": -1.0}, r"wire\.g2-clip must be a number at least 0"),
        ({"g1_clip": 1.0, "g1_noise": math.nan}, r"wire\.g1-noise must be a number"),
        ({"transforms": ("noise",)}, r"names 'noise', and every wire\.\*-clip is 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WireConfig(**keys)


def test_it_is_the_last_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flower_split.config.wire.registered", lambda group: ("other",))
    assert WireConfig(transforms=("other",), h1_clip=1.0).transforms == ("other", "noise")
    with pytest.raises(ConfigError, match="put it last"):
        WireConfig(transforms=("noise", "other"), h1_clip=1.0)


def test_both_ends_agree_on_it() -> None:
    ours = spec(wire=WireConfig(h1_clip=3.0, h1_noise=0.5, g1_clip=2.0), adapter="")
    frame = pb.ClientFrame.FromString(hello_frame(ours, None).SerializeToString())
    theirs, _ = read_hello(frame.hello)
    assert theirs == ours
    check_spec(ours, theirs)
    other = replace(ours, wire=WireConfig(h1_clip=3.0, h1_noise=0.25, g1_clip=2.0))
    with pytest.raises(HandshakeError, match=r"wire\.h1_noise.* has 0\.5, the silo 0\.25"):
        check_spec(ours, other)
    frame.hello.clips.pop()
    with pytest.raises(HandshakeError, match="3 numbers for clip, expected none or 4"):
        read_hello(frame.hello)
    del frame.hello.clips[:]
    with pytest.raises(HandshakeError, match=r"wire\.h1-clip, which is 0"):
        read_hello(frame.hello)
