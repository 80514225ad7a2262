"""Rows 18 to 25: frames that are too large, that lie, or that do not fit model or handshake."""

import threading
import zlib
from dataclasses import replace
from typing import Any

import grpc
import psutil
import pytest
import torch
from attack import Attack, Change
from hypothesis import given
from hypothesis import strategies as st
from raw_http2 import inflating, message, status_of
from watched_trunk import VICTIM, WatchedTrunk, withstood

from flower_split.config.wire import WireConfig
from flower_split.errors import TrunkBusyError, TrunkError, WireError
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.headers import MAX_DIM
from flower_split.serialization.tensors import MAX_FRAME_BYTES
from flower_split.transport.grpc.requests import RequestReader, encode_request
from flower_split.transport.messages import (
    BackwardRequest,
    CacheUse,
    ForwardRequest,
    Request,
    SessionLimits,
    SessionSpec,
    StepRequest,
)
from flower_split.transport.rules import HopRules

INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "WireError")
FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, "TrunkBusyError")
DIFFERENT = (grpc.StatusCode.FAILED_PRECONDITION, "HandshakeError")
WIDTH = 32


def forward(number: int = 0, **changes: Any) -> ForwardRequest:
    generator = torch.Generator().manual_seed(number)
    fields = {"hidden": torch.randn(2, 5, WIDTH, generator=generator), "keep_graph": True}
    return ForwardRequest(step=0, microbatch=number, **{**fields, **changes})


def backward(*shape: int, number: int = 0) -> BackwardRequest:
    return BackwardRequest(step=0, microbatch=number, grad=torch.ones(shape or (2, 5, WIDTH)))


SESSION = "/flower_split.v1.Trunk/Session"


class Memory:
    """By how many bytes this process has grown at most since then, looked at again and again."""

    def __init__(self) -> None:
        self._process, self._over = psutil.Process(), threading.Event()
        self._before = self._most = self._now()
        self._thread = threading.Thread(target=self._look, name="memory")

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def grown(self) -> int:
        return self._most - self._before

    def _now(self) -> int:
        return int(self._process.memory_info().rss)

    def _look(self) -> None:
        while not self._over.wait(0.001):
            self._most = max(self._most, self._now())


MUCH = 64 << 20
"""Bytes by which nothing that is refused may make the process grow."""


@pytest.mark.parametrize("length", [MAX_FRAME_BYTES + 1, 2**31, 2**32 - 1])
def test_row_18_an_oversized_message(
    trunk: WatchedTrunk, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused by the length that it says, before its bytes come and before there is room for it."""
    with withstood(trunk, caplog), Memory() as memory:
        told = message(b"begun", length=length)
        status = status_of(trunk.server.address, SESSION, told)
        assert status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert memory.grown < MUCH


@given(
    rows=st.integers(1, MAX_DIM),
    tokens=st.integers(1, MAX_DIM),
    step=st.sampled_from([0, 1, 10**9]),
)
def test_row_18_a_microbatch_that_is_announced_too_large(rows: int, tokens: int, step: int) -> None:
    limits = SessionLimits(max_message_tokens=4096)
    frame = announcing([rows, tokens, WIDTH])
    frame.forward.step = step
    reader = RequestReader(SPEC, limits, WIDTH)
    if rows * tokens <= limits.max_message_tokens:
        assert reader.feed(frame) is None  # its bytes are waited for
    else:
        with nothing_allocated(), pytest.raises(TrunkBusyError):
            reader.feed(frame)


SPEC = SessionSpec(
    purpose="train",
    fingerprint="00ff",
    num_layers=5,
    bottom_layers=1,
    top_layers=1,
    dtype="float32",
    trunk_adapters="federated",
    adapter="",
)


def announcing(shape: list[int], **changes: int) -> pb.ClientFrame:
    """A forward that announces h1 of `shape`, with the first of its bytes."""
    size = 4
    for length in shape:
        size *= length
    fields = {
        "role": pb.ROLE_H1,
        "dtype": pb.DTYPE_FLOAT32,
        "codec": pb.CODEC_FP32,
        "num_bytes": size % 2**64,
        **changes,
    }
    header = pb.TensorHeader(shape=shape, **fields)
    head = pb.Forward(tensors=[header])
    return pb.ClientFrame(forward=head, chunks=[pb.Chunk(data=b"1234")])


def nothing_allocated() -> Any:
    """Fail where memory is taken for a tensor that is announced."""
    patch = pytest.MonkeyPatch()

    class Patched:
        def __enter__(self) -> None:
            def empty(*shape: Any, **options: Any) -> None:
                raise AssertionError(f"memory for {shape}")

            patch.setattr("flower_split.serialization.tensors.torch.empty", empty)

        def __exit__(self, *exc_info: object) -> None:
            patch.undo()

    return Patched()


DIMS = st.one_of(
    st.sampled_from([0, 1, 2, 2**16, 2**31 - 1, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1)
)


@given(shape=st.lists(DIMS, max_size=9))
def test_row_19_dims_of_zero_overflow_or_too_many(shape: list[int]) -> None:
    reader = RequestReader(SPEC, SessionLimits(max_message_tokens=4096), WIDTH)
    fits = len(shape) == 3 and shape[2] == WIDTH and 0 < shape[0] * shape[1] <= 4096
    if fits:
        assert reader.feed(announcing(shape)) is None
        return
    with nothing_allocated(), pytest.raises(TrunkError) as caught:
        reader.feed(announcing(shape))
    assert type(caught.value) in (WireError, TrunkBusyError)


NEGATIVE = bytes([4 << 3, *[0xFF] * 9, 0x01])
"""A dimension of -1, as protobuf writes a signed one."""


@pytest.mark.sampled(keep=3)
@pytest.mark.parametrize("dims", ["negative", "0", "2^31 x 2^31", "rank 9", "rank 0"])
def test_row_19_such_dims_over_the_wire(attack: Attack, dims: str) -> None:
    shape = {
        "negative": [2, 5],
        "0": [2, 0, WIDTH],
        "2^31 x 2^31": [2**31, 2**31, WIDTH],
        "rank 9": [1] * 8 + [WIDTH],
        "rank 0": [],
    }[dims]
    frame = announcing(shape)
    if dims == "negative":
        frame.forward.tensors[0].MergeFromString(NEGATIVE)
    assert attack.ending(frame) == INVALID


def header(name: str, value: int) -> Change:
    return lambda frame: setattr(frame.forward.tensors[0], name, value)


def chunk(name: str, value: object) -> Change:
    return lambda frame: setattr(frame.chunks[0], name, value)


LIES: dict[str, Change] = {
    "another dtype": header("dtype", pb.DTYPE_BFLOAT16),
    "a dtype of integers": header("dtype", pb.DTYPE_INT64),
    "an unknown dtype": header("dtype", 99),
    "no dtype": header("dtype", 0),
    "an unknown codec": header("codec", 99),
    "a codec that was not agreed": header("codec", pb.CODEC_NF4),
    "an unknown role": header("role", 99),
    "fewer bytes": header("num_bytes", 2 * 5 * WIDTH * 4 - 1),
    "more bytes": header("num_bytes", 2 * 5 * WIDTH * 4 + 1),
    "2^63 bytes": header("num_bytes", 2**63),
    "another checksum": header("crc32", 1),
    "a chunk that is too long": chunk("data", bytes(2 * 5 * WIDTH * 4 + 1)),
    "an empty chunk": chunk("data", b""),
}


@pytest.mark.sampled(keep=5)
@pytest.mark.parametrize("lie", LIES)
def test_row_20_a_header_that_lies(attack: Attack, lie: str) -> None:
    frame = attack.frames(forward())[0]
    LIES[lie](frame)
    assert attack.ending(frame) == INVALID


@given(
    dtype=st.integers(0, 120),
    codec=st.integers(0, 2000),
    role=st.integers(0, 120),
    num_bytes=st.integers(0, 2**64 - 1),
)
def test_row_20_only_what_was_agreed_is_taken(
    dtype: int, codec: int, role: int, num_bytes: int
) -> None:
    frame = announcing([2, 5, WIDTH], dtype=dtype, codec=codec, role=role, num_bytes=num_bytes)
    agreed = (pb.DTYPE_FLOAT32, pb.CODEC_FP32, pb.ROLE_H1, 2 * 5 * WIDTH * 4)
    if (dtype, codec, role, num_bytes) != agreed:
        with nothing_allocated(), pytest.raises(WireError):
            RequestReader(SPEC, SessionLimits(), WIDTH).feed(frame)


def test_row_20_bytes_that_come_misaligned_are_a_tensor_that_is_aligned(
    trunk: WatchedTrunk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trunk.alone(VICTIM)
    with withstood(trunk, caplog) as fault:
        monkeypatch.setattr("flower_split.serialization.tensors.CHUNK_BYTES", 331)
        assert fault.attempt(trunk.invite(VICTIM)) is not None


def spoilt(value: float) -> Change:
    """An element of h1 or g2 with the checksum that its bytes have."""

    def change(frame: pb.ClientFrame) -> None:
        values = torch.frombuffer(bytearray(frame.chunks[0].data), dtype=torch.float32)
        values[7] = value
        frame.chunks[0].data = values.numpy().tobytes()
        kind = getattr(frame, frame.WhichOneof("frame") or "")
        kind.tensors[0].crc32 = zlib.crc32(frame.chunks[0].data)

    return change


@pytest.mark.sampled(keep=3)
@pytest.mark.parametrize("hop", ["h1", "g2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_row_21_values_that_are_not_finite(
    attack: Attack, hop: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    """No step is made of them, and each is told in the log by its kind."""
    frames = attack.frames(forward(), backward(), StepRequest(step=0, learning_rate=0.1))
    spoilt(value)(frames[0 if hop == "h1" else 1])
    assert attack.ending(*frames) == INVALID
    assert caplog.text.count("a stream was refused or ended: WireError") == 1


def test_row_21_denormal_values_are_computed_with(trunk: WatchedTrunk) -> None:
    """They are finite numbers, and arrive as they were sent."""
    tiny = torch.full((1, 2, WIDTH), 1e-42)
    (frame,) = encode_request(forward(hidden=tiny), HopRules(SPEC)).frames()
    pending = RequestReader(SPEC, SessionLimits(), WIDTH).feed(frame)
    assert pending is not None
    request = pending.build()
    assert isinstance(request, ForwardRequest) and torch.equal(request.hidden, tiny)


@pytest.mark.sampled(keep=2)
@pytest.mark.parametrize("codec", ["int8", "nf4"])
@pytest.mark.parametrize("scale", [0.0, float("inf"), float("nan")])
def test_row_21_scales_that_no_encoder_makes(attack: Attack, codec: str, scale: float) -> None:
    attack.spec = replace(attack.spec, wire=WireConfig(h1=codec))
    frame = attack.frames(forward())[0]
    data = torch.frombuffer(bytearray(frame.chunks[0].data), dtype=torch.uint8)
    data[:2].view(torch.bfloat16)[0] = scale
    frame.chunks[0].data = data.numpy().tobytes()
    frame.forward.tensors[0].crc32 = zlib.crc32(frame.chunks[0].data)
    assert attack.ending(frame) == INVALID


MISFITS: dict[str, list[Request]] = {
    "hidden size of h1": [forward(hidden=torch.ones(2, 5, WIDTH + 1))],
    "hidden size of g2": [forward(), backward(2, 5, WIDTH - 1)],
    "rows of g2": [forward(), backward(3, 5, WIDTH)],
    "tokens of g2": [forward(), backward(2, 4, WIDTH)],
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_row_22_a_batch_that_does_not_fit(attack: Attack, misfit: str) -> None:
    assert attack.ending(*attack.frames(*MISFITS[misfit])) == INVALID


DIFFERENCES: dict[str, dict[str, Any]] = {
    "model": {"fingerprint": "00ff"},
    "split": {"bottom_layers": 2},
    "layers": {"num_layers": 7},
    "adapter": {"adapter": '{"r": 99}'},
    "loaded adapter": {"loaded_adapter": "0" * 64},
    "delivered model, its tokenizer with it": {"pack": "0" * 64},
    "trunk's mode": {"trunk_adapters": "shared"},
}


@pytest.mark.sampled(keep=4)
@pytest.mark.parametrize("what", DIFFERENCES)
def test_row_23_parties_that_differ(attack: Attack, what: str) -> None:
    attack.spec = replace(attack.spec, **DIFFERENCES[what])
    assert attack.ending() == DIFFERENT


def test_row_23_another_version_of_the_protocol(attack: Attack) -> None:
    def later(frame: pb.ClientFrame) -> None:
        frame.hello.protocol_version += 1

    assert attack.ending(hello=later) == DIFFERENT


POSITIONS: dict[str, dict[str, Any]] = {
    "a sequence beyond the model's positions": {"hidden": torch.ones(1, 129, WIDTH)},
    "a position beyond them": {"position_ids": torch.full((2, 5), 128)},
    "a position of 2^31": {"position_ids": torch.full((2, 5), 2**31)},
    "a position of -2": {"position_ids": torch.full((2, 5), -2)},
    "a mask of another length": {"attention_mask": torch.ones(2, 6, dtype=torch.bool)},
    "a mask of other rows": {"attention_mask": torch.ones(3, 5, dtype=torch.bool)},
    "a cache that reaches beyond them": {
        "cache": CacheUse(cache_id=0, past_length=127),
        "keep_graph": False,
        "attention_mask": torch.ones(2, 132, dtype=torch.bool),
    },
}


@pytest.mark.sampled(keep=4)
@pytest.mark.parametrize("what", POSITIONS)
def test_row_24_positions_and_masks_out_of_range(attack: Attack, what: str) -> None:
    """Refused on the CPU, before a device's kernel could index with them."""
    assert attack.ending(*attack.frames(forward(**POSITIONS[what]))) == INVALID


def test_row_25_a_message_that_inflates(
    trunk: WatchedTrunk, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a MiB on the wire, half a GiB when it is inflated: nobody inflates it."""
    with withstood(trunk, caplog), Memory() as memory:
        told = message(inflating(512), compressed=True)
        assert len(told) < MAX_FRAME_BYTES
        status = status_of(trunk.server.address, SESSION, told, encoding="gzip")
        assert status == grpc.StatusCode.UNIMPLEMENTED.value[0]
    assert memory.grown < MUCH


@pytest.mark.parametrize("codec", ["int8", "nf4"])
@pytest.mark.parametrize("claim", ["shorter", "longer", "trailing"])
def test_row_25_a_codec_whose_length_lies(attack: Attack, codec: str, claim: str) -> None:
    """What a codec makes of a payload is of the announced shape, which says its length too."""
    attack.spec = replace(attack.spec, wire=WireConfig(h1=codec))
    frame = attack.frames(forward())[0]
    if claim == "trailing":
        frame.chunks[0].data += b"more"
    else:
        frame.forward.tensors[0].num_bytes += 1 if claim == "longer" else -1
    assert attack.ending(frame) == INVALID
