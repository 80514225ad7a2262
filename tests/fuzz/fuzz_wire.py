"""Harnesses of the wire: requests, replies, handshakes, codecs, and the model's delivery."""

import asyncio
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from affine_backend import backward, forward, spec
from fuzz_choices import Choices
from fuzz_messages import fit, mend, mutate
from google.protobuf.message import DecodeError

from flower_split.compression.table import CODEC_TABLE
from flower_split.delivery.manifest import Item, Manifest
from flower_split.errors import TrunkError
from flower_split.proto import trunk_pb2 as pb
from flower_split.server.grpc.delivery import DeliveryService
from flower_split.server.handshake import check_spec
from flower_split.transport.grpc.handshake import (
    hello_frame,
    read_hello,
    read_welcome,
    welcome_frame,
)
from flower_split.transport.grpc.replies import ReplyReader, encode_reply
from flower_split.transport.grpc.requests import RequestReader, encode_request
from flower_split.transport.grpc.status import CODES, to_status
from flower_split.transport.messages import (
    AdapterCall,
    AdapterReply,
    AdapterUse,
    BackwardReply,
    BackwardRequest,
    CacheEdit,
    CacheUse,
    Discard,
    DropCache,
    Finish,
    ForwardReply,
    Release,
    Reply,
    Request,
    SessionLimits,
    SessionSpec,
    SessionSummary,
    StepReply,
    StepRequest,
    Ticket,
    Weigh,
)
from flower_split.transport.rules import (
    ADAPTER_DOWN,
    ADAPTER_UP,
    ATTENTION_MASK,
    POSITION_IDS,
    HopRules,
)

LIMITS = SessionLimits(
    max_in_flight=2, max_message_tokens=64, max_cached_tokens=256, max_adapter_elements=512
)
HIDDEN = 8
MOST_PENDING = 1 << 20
"""Bytes that a request or a reply of these limits may announce."""
WIRES = ("fp32", "bf16", "fp16", "int8", "nf4")
SPECS = [spec(wire=spec().wire, prefix_tokens=2)] + [
    spec(dtype=dtype, wire=type(spec().wire)(h1=codec, h2=codec, g2=codec, g1=codec))
    for dtype, codec in (
        ("float32", "bf16"),
        ("bfloat16", "int8"),
        ("float16", "nf4"),
        ("float16", "fp16"),
    )
]
PLAIN = SPECS[0]
_CODES = set(CODES.values())


def documented(error: TrunkError) -> None:
    """Fail unless `error` crosses the wire under a code of the table, in words that fit."""
    code, details, metadata = to_status(error)
    assert code in _CODES and details and len(details) <= 1024, (code, details)
    details.encode("utf-8")
    assert metadata[0][1] == next(k.__name__ for k in CODES if isinstance(error, k))


def rules_of(session: SessionSpec) -> dict[str, object]:
    """The rules of every tensor, by role."""
    hops = HopRules(session)
    named = {hop: hops[hop] for hop in ("h1", "h2", "g2", "g1", "prefix", "prefix_grad")}
    more = {"attention_mask": ATTENTION_MASK, "position_ids": POSITION_IDS}
    return {**named, **more, "adapter_up": ADAPTER_UP, "adapter_down": ADAPTER_DOWN}


def requests_of(session: SessionSpec) -> list[Request]:
    """One request of every kind, as a silo sends them."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    kind = dtype[session.dtype]
    hidden = forward(0).hidden.to(kind)
    edits = (CacheEdit(kind="crop", values=(1,)), CacheEdit(kind="reorder", values=(1, 0)))
    prefix = {"prefix": torch.ones(6, 2, 4)} if session.prefix_tokens else {}
    return [
        forward(1, hidden=hidden),
        forward(
            2,
            hidden=hidden,
            attention_mask=torch.ones(2, 5, dtype=torch.bool),
            position_ids=torch.zeros(1, 4, dtype=torch.int64),
            cache=CacheUse(cache_id=1, past_length=1, edits=edits),
            keep_graph=False,
        ),
        forward(3, hidden=hidden, adapter=AdapterUse(copy="other", scale=0.5), autocast="bfloat16"),
        forward(4, hidden=hidden, **prefix),
        _as(backward(1), kind),
        _as(backward(1, adapter_grad="return"), kind),
        _as(backward(1, wants_input_grad=False, adapter_grad="measure"), kind),
        _as(backward(1, adapter_grad="hold"), kind),
        StepRequest(step=0, learning_rate=1e-3, norms_before=(0.5, 0.25), norms_after=(1.0,)),
        StepRequest(step=1, learning_rate=1e-3, constants=session.optimizer, scale=0.5, clip=1.0),
        Release(microbatch=1),
        DropCache(cache_id=1),
        Discard(zeros=True),
        Weigh(microbatch=1, factors=(1.0, 0.5)),
        AdapterCall(action="list"),
        AdapterCall(action="read"),
        AdapterCall(action="write", tensors=(torch.ones(2, 3), torch.ones(4))),
        AdapterCall(action="copy", name="other"),
        AdapterCall(action="snapshot", name="tag"),
        AdapterCall(action="restore", name="tag"),
        AdapterCall(action="ranks_mask", threshold=0.5),
        AdapterCall(action="ranks_scores"),
        Finish(),
    ]


def _as(request: BackwardRequest, dtype: torch.dtype) -> BackwardRequest:
    return replace(request, grad=request.grad.to(dtype))


def joined(frames: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<H", len(frame)) + frame for frame in frames)


def parted(data: bytes) -> Iterator[bytes]:
    while len(data) >= 2:
        (size,) = struct.unpack("<H", data[:2])
        yield data[2 : 2 + size]
        data = data[2 + size :]


def damaged(frames, rules, choices: Choices) -> list:
    """Copies of `frames`, some of them changed, dropped, repeated or out of their order.

    Args:
        frames: Messages of one kind.
        rules: Of the tensors in them, by role; empty where there are none.
        choices: What is done.
    """
    changed = [type(frame).FromString(frame.SerializeToString()) for frame in frames]
    while choices.more and changed:
        at, action = choices.below(len(changed)), choices.below(16)
        if action == 0:
            del changed[at]
        elif action == 1 and len(changed) < 64:
            changed.insert(choices.below(len(changed)), changed[at])
        elif action == 2:
            changed.append(changed.pop(at))
        else:
            frame = type(changed[at]).FromString(changed[at].SerializeToString())
            inner = (
                frame.WhichOneof("frame") if "frame" in frame.DESCRIPTOR.oneofs_by_name else None
            )
            mutate(frame if inner is None or action == 3 else getattr(frame, inner), choices)
            if rules and action & 1:
                mend(frame)
            elif rules and action & 2:
                fit(frame, rules, choices)
            changed[at] = frame
    return changed


_FRAMES = {
    number: [f for r in requests_of(session) for f in encode_request(r, HopRules(session)).frames()]
    for number, session in enumerate(SPECS)
}


def requests(data: bytes) -> None:
    """The trunk's reader of requests: frames as they are, or good frames with damage."""
    choices = Choices(data)
    number, raw = choices.below(len(SPECS)), choices.yes()
    session = SPECS[number]
    try:
        if raw:
            frames = [pb.ClientFrame.FromString(one) for one in parted(choices.rest())]
        else:
            first = choices.below(len(_FRAMES[number]))
            frames = _FRAMES[number][first : first + 3]
            frames = damaged(frames, rules_of(session), choices)
    except DecodeError:
        return
    reader = RequestReader(session, LIMITS, HIDDEN)
    try:
        for frame in frames:
            pending = reader.feed(frame)
            if pending is not None:
                assert pending.num_bytes <= MOST_PENDING
                encode_request(pending.build(), HopRules(session))
    except TrunkError as error:
        documented(error)


def _request_seeds() -> list[bytes]:
    whole = [
        bytes([number, 1]) + joined([frame.SerializeToString() for frame in frames[:6]])
        for number, frames in _FRAMES.items()
    ]
    return whole + [bytes([0, 0, first, 0, 8, 5, 1, 3, 7]) for first in range(len(_FRAMES[0]))]


HELD = (("m.lora_A.weight", (2, 3)), ("m.lora_B.weight", (4,)))
ANSWERS: list[tuple[Request, Reply]] = [
    (forward(1), forward(1).hidden),
    (forward(1), ForwardReply(hidden=forward(1).hidden, orthogonality=0.5)),
    (backward(1), backward(1).grad),
    (backward(1, wants_input_grad=False), None),
    (
        backward(1, adapter_grad="return"),
        BackwardReply(grad=backward(1).grad, adapter_grads=(torch.ones(2, 3), torch.ones(4))),
    ),
    (
        backward(1, adapter_grad="measure"),
        BackwardReply(grad=backward(1).grad, norm=1.0, largest=2),
    ),
    (
        backward(1, prefix_shape=(6, 2, 4)),
        BackwardReply(grad=backward(1).grad, prefix_grad=torch.ones(6, 2, 4)),
    ),
    (StepRequest(step=1, learning_rate=0.1), StepReply(norms=(0.5, 1.0))),
    (AdapterCall(action="list"), AdapterReply(held=HELD)),
    (
        AdapterCall(action="read"),
        AdapterReply(held=HELD, tensors=(torch.ones(2, 3), torch.ones(4))),
    ),
    (AdapterCall(action="ranks_scores"), AdapterReply(scores=(0.5, 1.5))),
    (AdapterCall(action="ranks_mask_again"), AdapterReply(kept=7)),
    (Finish(), SessionSummary(steps=1, forwards=2, backwards=3, tokens=4)),
]
_ANSWERED = [
    list(encode_reply(request, reply, HopRules(PLAIN)).frames()) for request, reply in ANSWERS
]


def replies(data: bytes) -> None:
    """The silo's reader of replies."""
    choices = Choices(data)
    number, raw = choices.below(len(ANSWERS)), choices.yes()
    try:
        if raw:
            frames = [pb.ServerFrame.FromString(one) for one in parted(choices.rest())]
        else:
            frames = damaged(_ANSWERED[number], rules_of(PLAIN), choices)
    except DecodeError:
        return
    reader = ReplyReader(ANSWERS[number][0], HopRules(PLAIN), LIMITS)
    try:
        for frame in frames:
            if reader.feed(frame):
                reader.reply()
                return
    except TrunkError as error:
        documented(error)


def _reply_seeds() -> list[bytes]:
    return [
        bytes([number, 1]) + joined([frame.SerializeToString() for frame in frames])
        for number, frames in enumerate(_ANSWERED)
    ] + [bytes([number, 0, 0, 8, 4, 1, 2, 3]) for number in range(len(ANSWERS))]


TICKET = Ticket(run_id=1, node_id=2, server_round=3, token="t" * 32)
_HELLOS = [hello_frame(one, TICKET) for one in SPECS] + [
    pb.ClientFrame(hello=hello_frame(spec(silo="silo", session_states=("0" * 64,)), None).hello)
]
_WELCOME = welcome_frame(LIMITS, "0" * 64)


def handshake(data: bytes) -> None:
    """The trunk's reading of a Hello, with the comparison that follows, and the silo's Welcome."""
    choices = Choices(data)
    kind, raw = choices.below(len(_HELLOS) + 1), choices.yes()
    welcomes = kind == len(_HELLOS)
    message = pb.ServerFrame if welcomes else pb.ClientFrame
    try:
        if raw:
            frame = message.FromString(choices.rest())
        else:
            (frame,) = damaged([_WELCOME if welcomes else _HELLOS[kind]], {}, choices)[:1] or [
                message()
            ]
    except DecodeError:
        return
    try:
        if welcomes:
            read_welcome(frame.welcome)
            return
        asked, _ = read_hello(frame.hello)
        HopRules(asked)
        check_spec(SPECS[0], asked)
    except TrunkError as error:
        documented(error)


def _hello_seeds() -> list[bytes]:
    frames = [frame.SerializeToString() for frame in (*_HELLOS, _WELCOME)]
    return [bytes([number, 1]) + frame for number, frame in enumerate(frames)] + [
        bytes([number, 0, 0, 8, 4, 1, 2, 3]) for number in range(len(frames))
    ]


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def codecs(data: bytes) -> None:
    """Every codec's decoder, of bytes as they come; and what it accepts is carried once more."""
    choices = Choices(data)
    codec, dtype = CODEC_TABLE[choices.of(WIRES)], choices.of(DTYPES)
    shape = tuple(choices.below(9) + 1 for _ in range(choices.below(3) + 1))
    wanted = codec.encoded_bytes(shape)
    noise = choices.rest() or b"\x00"
    payload = noise if noise[0] & 1 else (noise * (wanted // len(noise) + 1))[:wanted]
    try:
        tensor = codec.decode(torch.tensor(list(payload), dtype=torch.uint8), shape, dtype)
    except TrunkError as error:
        documented(error)
        return
    assert tensor.shape == shape and tensor.dtype == dtype and bool(tensor.isfinite().all())
    try:
        again = codec.encode(tensor)
    except TrunkError as error:  # fp16's largest is rounded to more than that in bf16
        assert dtype == torch.bfloat16 and float(tensor.abs().max()) == 65536.0
        documented(error)
        return
    assert again.numel() == wanted
    assert bool(codec.decode(again, shape, dtype).isfinite().all())


class _Part:
    size = 3 << 19

    def read(self, offset: int, length: int) -> bytes:
        return bytes(min(length, self.size - offset))


class _Pack:
    digest = "ab" * 32

    def find(self, digest: str) -> _Part | None:
        return _Part() if digest == self.digest else None


class _Writer:
    def __init__(self) -> None:
        self.sent = 0

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    async def write(self, message: pb.DeliverReply) -> None:
        self.sent += len(message.data)
        assert len(message.data) <= 1 << 20


_ASKED = [
    pb.DeliverRequest(protocol_version=2, digest=bytes.fromhex(_Pack.digest), offset=offset)
    for offset in (0, 1 << 20, _Part.size)
]
_MANIFEST = Manifest(
    files={"config.json": Item(digest="0" * 64, size=10)},
    weights=(Item(digest="1" * 64, size=1 << 30),),
)


def delivery(data: bytes) -> None:
    """The trunk's service of the model's parts, and the silo's reading of a pack's manifest."""
    choices = Choices(data)
    kind = choices.below(4)
    if kind == 0:
        _read_manifest(choices.rest())
        return
    if kind == 1:
        text = bytearray(_MANIFEST.to_bytes())
        while choices.more:
            at = choices.below(len(text))
            text[at : at + choices.below(4)] = choices.bytes(4)
        _read_manifest(bytes(text))
        return
    try:
        if kind == 2:
            asked = [pb.DeliverRequest.FromString(one) for one in parted(choices.rest())]
        else:
            asked = damaged(_ASKED, {}, choices)
    except DecodeError:
        return
    if asked:
        asyncio.run(_deliver(asked[:4]))


def _read_manifest(content: bytes) -> None:
    try:
        found = Manifest.from_bytes(content)
    except TrunkError as error:
        documented(error)
    else:
        assert Manifest.from_bytes(found.to_bytes()) == found


async def _deliver(asked: list[pb.DeliverRequest]) -> None:
    async def others() -> "Iterator[pb.DeliverRequest]":
        for one in asked[1:]:
            yield one

    service, writer = DeliveryService(_Pack(), None, max_streams=1, idle_timeout=30.0), _Writer()
    try:
        await service.serve(asked[0], others(), writer)
    except TrunkError as error:
        documented(error)
    finally:
        service.close()
    assert writer.sent <= len(asked) * _Part.size and service.num_streams == 0


def _delivery_seeds() -> list[bytes]:
    return [
        bytes([0]) + _MANIFEST.to_bytes(),
        bytes([1, 7, 2, 1]),
        bytes([2]) + joined([one.SerializeToString() for one in _ASKED]),
        bytes([3, 0, 8, 3, 4]),
    ]


SEEDS = {
    "requests": _request_seeds,
    "replies": _reply_seeds,
    "handshake": _hello_seeds,
    "codecs": lambda: [
        bytes([n, d, 1, 3, 2, 2]) + bytes(range(64)) for n in range(5) for d in range(3)
    ],
    "delivery": _delivery_seeds,
}
HARNESSES = {
    "requests": requests,
    "replies": replies,
    "handshake": handshake,
    "codecs": codecs,
    "delivery": delivery,
}
