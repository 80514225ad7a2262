"""Requests arrive as they were meant, and everything that a silo could make up is refused."""

from collections.abc import Callable

import pytest
import torch
from affine_backend import backward, forward, spec
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_split.errors import SequenceError, TrunkBusyError, TrunkError, WireError
from flower_split.optimization.clipping import LARGEST_NORM
from flower_split.proto import trunk_pb2 as pb
from flower_split.transport.grpc.requests import (
    EDIT_KINDS,
    PendingRequest,
    RequestReader,
    encode_request,
)
from flower_split.transport.messages import (
    BackwardRequest,
    CacheEdit,
    CacheUse,
    DropCache,
    Finish,
    ForwardRequest,
    Release,
    Request,
    SessionLimits,
    StepRequest,
)
from flower_split.transport.rules import HopRules

RULES = HopRules(spec())
LIMITS = SessionLimits(max_in_flight=2, max_message_tokens=64, max_cached_tokens=96)


def frames_of(request: Request) -> list[pb.ClientFrame]:
    return [
        pb.ClientFrame.FromString(frame.SerializeToString())
        for frame in encode_request(request, RULES).frames()
    ]


def reader(hidden_size: int | None = 8) -> RequestReader:
    return RequestReader(spec(), LIMITS, hidden_size)


def arrived(request: Request) -> Request:
    *first, last = frames_of(request)
    receiving = reader(None)
    assert all(receiving.feed(frame) is None for frame in first)
    pending = receiving.feed(last)
    assert isinstance(pending, PendingRequest)
    return pending.build()


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("positions", [None, (2, 3), (1, 3)])
def test_a_forward_arrives_as_it_was_meant(
    with_mask: bool, positions: tuple[int, int] | None
) -> None:
    cache = CacheUse(
        cache_id=4,
        past_length=5,
        edits=tuple(CacheEdit(kind=kind, values=(-1, 0, 2)) for kind in EDIT_KINDS),
    )
    request = ForwardRequest(
        step=3,
        microbatch=7,
        hidden=torch.randn(2, 3, 8),
        attention_mask=torch.rand(2, 8) > 0.5 if with_mask else None,
        position_ids=None if positions is None else torch.randint(-1, 9, positions),
        keep_graph=True,
        dropout=True,
        cache=cache,
    )
    got = arrived(request)
    assert isinstance(got, ForwardRequest)
    for name, value in vars(request).items():
        other = getattr(got, name)
        same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        assert same, name


WITH_PREFIX = spec(prefix_tokens=5, trunk_adapters="frozen")


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_a_prefix_arrives_as_it_was_meant(rows: int, cached: bool) -> None:
    request = forward(
        0,
        prefix=torch.randn(6 * rows, 5, 4),
        attention_mask=torch.ones(2, 9, dtype=torch.bool),
        cache=CacheUse(cache_id=1, past_length=5) if cached else None,
    )
    *first, last = frames_of(request)
    receiving = RequestReader(WITH_PREFIX, LIMITS, 8)
    assert all(receiving.feed(frame) is None for frame in first)
    pending = receiving.feed(last)
    assert isinstance(pending, PendingRequest)
    got = pending.build()
    assert isinstance(got, ForwardRequest) and got.cache == request.cache
    assert got.prefix is not None and torch.equal(got.prefix, request.prefix)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((6, 4, 4), {}, "4 tokens, the session's has 5"),
        ((18, 5, 4), {}, "expected 6 keys and values, of one or of 2 rows each"),
        ((12, 5, 1 << 19), {}, "the trunk takes at most 64 tokens"),
        ((6, 5, 4), {"cache": CacheUse(cache_id=1, past_length=4)}, "for a cache of 4 tokens"),
        (
            (6, 5, 4),
            {"cache": CacheUse(cache_id=1, past_length=5, edits=(CacheEdit(kind="reset"),))},
            "it is what a cache begins with",
        ),
        ((6, 5, 4), {"attention_mask": torch.ones(2, 4, dtype=torch.bool)}, r"expected \(2, 9\)"),
    ],
)
def test_a_prefix_out_of_bounds_is_refused_before_it_is_read(
    shape: tuple[int, int, int], changes: dict[str, object], message: str
) -> None:
    frame = frames_of(forward(0, prefix=torch.zeros(6, 5, 4), **changes))[0]
    header = frame.forward.tensors[-1]
    header.shape[:], header.num_bytes = shape, 4 * shape[0] * shape[1] * shape[2]
    with pytest.raises(TrunkError, match=message):
        RequestReader(WITH_PREFIX, LIMITS, 8).feed(frame)
    with pytest.raises(WireError, match="this session was opened without one"):
        reader().feed(frame)


@pytest.mark.parametrize("wants", [False, True])
def test_a_backward_arrives_as_it_was_meant(wants: bool) -> None:
    request = backward(5, 2, 3, 8, step=2, wants_input_grad=wants)
    got = arrived(request)
    assert isinstance(got, BackwardRequest)
    assert torch.equal(got.grad, request.grad)
    assert (got.step, got.microbatch, got.wants_input_grad) == (2, 5, wants)


@settings(max_examples=50, deadline=None)
@given(
    request=st.builds(
        StepRequest,
        step=st.integers(0, 2**64 - 1),
        learning_rate=st.floats(0, 1e3),
        norms_before=st.lists(st.floats(0, LARGEST_NORM), max_size=9).map(tuple),
        norms_after=st.lists(st.floats(0, LARGEST_NORM), max_size=9).map(tuple),
    )
    | st.builds(Release, microbatch=st.integers(0, 2**64 - 1))
    | st.builds(DropCache, cache_id=st.integers(0, 2**64 - 1))
    | st.just(Finish())
)
def test_requests_without_tensors_arrive_as_they_were_meant(request: Request) -> None:
    assert arrived(request) == request


@pytest.mark.parametrize(
    "request_",
    [
        Release(microbatch=-1),
        DropCache(cache_id=2**64),
        StepRequest(step=-1, learning_rate=0.1),
        forward(0, step=-1),
        backward(0, step=2**64),
    ],
)
def test_a_silo_does_not_send_numbers_that_do_not_fit(request_: Request) -> None:
    with pytest.raises(WireError, match="does not fit the wire"):
        encode_request(request_, RULES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_mask": torch.ones(2, 4)}, "attention_mask: torch.float32"),
        ({"attention_mask": torch.ones(2, 4, dtype=torch.int64)}, "expected torch.bool"),
        ({"position_ids": torch.ones(4, dtype=torch.int64)}, "position_ids: .* 2 dimensions"),
        ({"hidden": torch.ones(2, 4)}, "h1: "),
        ({"hidden": torch.full((1, 1, 8), float("nan"))}, "h1: NaN"),
    ],
)
def test_a_silo_does_not_send_tensors_that_were_not_agreed(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(WireError, match=message):
        encode_request(forward(0, **changes), RULES)


def refuse(change: Callable[[pb.ClientFrame], object], request: Request) -> TrunkError:
    """The error that a changed frame meets before any payload is looked at."""
    frame = frames_of(request)[0]
    change(frame)
    with pytest.raises(TrunkError) as caught:
        reader().feed(frame)
    return caught.value


def test_more_tokens_than_the_trunk_takes() -> None:
    error = refuse(lambda frame: None, forward(0, 5, 13, 8))
    assert type(error) is TrunkBusyError
    assert "h1: 5 x 13 tokens; the trunk takes at most 64" in str(error)


def test_another_hidden_size() -> None:
    error = refuse(lambda frame: None, forward(0, 2, 4, 16))
    assert type(error) is WireError and "h1: hidden size 16, the trunk's is 8" in str(error)
    assert "g2: hidden size 16" in str(refuse(lambda frame: None, backward(0, 2, 4, 16)))


@pytest.mark.parametrize(
    ("shape", "cache", "message"),
    [
        ((2, 5), None, r"attention_mask: shape \(2, 5\), expected \(2, 4\)"),
        ((3, 4), None, r"expected \(2, 4\)"),
        ((2, 4), CacheUse(cache_id=0, past_length=1), r"expected \(2, 5\)"),
        ((2, 60), CacheUse(cache_id=0, past_length=56), "2 x 60 tokens; .* at most 96"),
    ],
)
def test_a_mask_that_does_not_fit(
    shape: tuple[int, int], cache: CacheUse | None, message: str
) -> None:
    request = forward(0, cache=cache, attention_mask=torch.ones(shape, dtype=torch.bool))
    with pytest.raises(TrunkError, match=message):
        reader().feed(frames_of(request)[0])


@pytest.mark.parametrize("shape", [(2, 3), (4, 4), (4, 1)])
def test_position_ids_that_do_not_fit(shape: tuple[int, int]) -> None:
    request = forward(0, position_ids=torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(WireError, match=r"position_ids: .* expected \(2, 4\) or \(1, 4\)"):
        reader().feed(frames_of(request)[0])


@pytest.mark.parametrize("value", [-2, 2**31, -(2**63), 2**63 - 1])
def test_position_ids_out_of_range(value: int) -> None:
    positions = torch.zeros(2, 4, dtype=torch.int64)
    positions[1, 2] = value
    with pytest.raises(WireError, match="position_ids: values outside"):
        arrived(forward(0, position_ids=positions))


def double(frame: pb.ClientFrame) -> None:
    frame.forward.tensors.add().CopyFrom(frame.forward.tensors[0])


def shuffle(frame: pb.ClientFrame) -> None:
    first, *rest = list(frame.forward.tensors)
    frame.forward.ClearField("tensors")
    frame.forward.tensors.extend([*rest, first])


def unknown_edit(frame: pb.ClientFrame) -> None:
    frame.forward.cache.edits.add(kind=99)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.forward.ClearField("tensors"), "forward without tensors"),
        (double, "forward with more tensors|expected tensor prefix, got h1"),
        (shuffle, "expected tensor h1, got attention_mask"),
        (unknown_edit, "cache edit of unknown kind 99"),
    ],
)
def test_a_forward_that_is_put_together_wrongly(
    change: Callable[[pb.ClientFrame], object], message: str
) -> None:
    request = forward(
        0,
        attention_mask=torch.ones(2, 4, dtype=torch.bool),
        position_ids=torch.zeros(2, 4, dtype=torch.int64),
        cache=CacheUse(cache_id=0, past_length=0),
    )
    error = refuse(change, request)
    assert type(error) is WireError
    assert any(part in str(error) for part in message.split("|"))


def test_a_backward_has_one_tensor() -> None:
    error = refuse(lambda frame: frame.backward.ClearField("tensors"), backward(0))
    assert type(error) is WireError and "backward with 0 tensors" in str(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e4])
def test_a_learning_rate_out_of_range(value: float) -> None:
    frame = pb.ClientFrame(step=pb.Step(learning_rate=value))
    with pytest.raises(WireError, match="learning_rate"):
        reader().feed(frame)


@pytest.mark.parametrize("field", ["norms_before", "norms_after"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_norms_out_of_range(field: str, value: float) -> None:
    step = pb.Step()
    getattr(step, field).append(value)
    with pytest.raises(WireError, match="gradient norm"):
        reader().feed(pb.ClientFrame(step=step))


def test_frames_out_of_order() -> None:
    big = frames_of(forward(0, 1, 8, 65536))
    assert len(big) == 2
    receiving = reader(None)
    assert receiving.feed(big[0]) is None
    with pytest.raises(SequenceError, match="frame finish, expected the chunks"):
        receiving.feed(pb.ClientFrame(finish=pb.Finish()))
    with pytest.raises(SequenceError, match="chunks, expected a request"):
        reader().feed(big[1])
    with pytest.raises(SequenceError, match="second hello"):
        reader().feed(pb.ClientFrame(hello=pb.Hello()))


def test_a_frame_of_an_unknown_kind() -> None:
    future = pb.ClientFrame.FromString(b"\xfa\x01\x00")  # field 31, as a later version may send
    with pytest.raises(WireError, match="unknown kind"):
        reader().feed(future)


def test_chunks_for_a_request_that_has_no_tensors() -> None:
    frame = pb.ClientFrame(finish=pb.Finish(), chunks=[pb.Chunk(data=b"x")])
    with pytest.raises(SequenceError, match="without a tensor"):
        reader().feed(frame)
