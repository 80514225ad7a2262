"""Messages with damage: any field of a frame set, cleared, repeated or swapped for another.

Bytes of tensors can be made to fit what their header says after the damage, and headers what their
rules say, so that a damaged message is not refused by its checksum before anyone looks at it.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from fuzz_choices import Choices
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.headers import TensorRule
from flower_split.serialization.tables import DTYPE_TO_WIRE, ROLE_NAMES

MOST_BYTES = 1 << 14
"""Payload that a frame is filled up to: what is larger keeps the bytes it had."""
_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_ENUM: (-(2**31), 2**31 - 1),
}


def mutate(message: Message, choices: Choices) -> None:
    """Change one field of `message`, or of a message in it."""
    action, fields = choices.below(8), list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = choices.of(fields)
    if action == 0:
        message.ClearField(field.name)
    elif field.label == FieldDescriptor.LABEL_REPEATED:
        _change_items(getattr(message, field.name), field, action, choices)
    elif field.message_type is not None:
        mutate(getattr(message, field.name), choices)
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _value(field, choices))


def _change_items(items: "Sequence", field: FieldDescriptor, action: int, choices: Choices) -> None:
    if field.message_type is not None:
        if action == 1 and len(items) < 80:
            items.add()
        elif action == 2 and items:
            del items[choices.below(len(items))]
        elif action == 3 and items:
            items.add().CopyFrom(items[choices.below(len(items))])
        elif items:
            mutate(items[choices.below(len(items))], choices)
        return
    value = _value(field, choices)
    if action == 1 or not items:
        items.extend([value] * (1 + choices.below(4)))
    elif action == 2:
        del items[choices.below(len(items))]
    elif action == 3:
        items.extend([value] * (choices.below(100) + 1))
    else:
        items[choices.below(len(items))] = value


def _value(field: FieldDescriptor, choices: Choices) -> object:
    kind = field.type
    if kind in _RANGES:
        low, high = _RANGES[kind]
        return low + (choices.number() - low) % (high - low + 1)
    if kind == FieldDescriptor.TYPE_DOUBLE:
        return choices.float()
    if kind == FieldDescriptor.TYPE_FLOAT:
        return float(np.clip(choices.float(), -3e38, 3e38))
    if kind == FieldDescriptor.TYPE_BOOL:
        return choices.yes()
    return choices.text() if kind == FieldDescriptor.TYPE_STRING else choices.bytes(64)


def headers_of(frame: Message) -> "Sequence[pb.TensorHeader]":
    """The headers of the tensors that a frame announces."""
    kind = frame.WhichOneof("frame")
    return list(getattr(getattr(frame, kind), "tensors", ())) if kind else []


def fit(frame: Message, rules: "dict[str, TensorRule]", choices: Choices) -> None:
    """Make a frame's tensors what its headers' shapes say, all of it in this frame."""
    headers, total = headers_of(frame), 0
    sizes = []
    for header in headers:
        rule = rules.get(ROLE_NAMES.get(header.role, ""))
        if rule is None or not header.shape or min(header.shape) == 0 or max(header.shape) > 2**20:
            return
        header.dtype, header.codec = DTYPE_TO_WIRE[rule.dtype], rule.codec.wire
        sizes.append(rule.codec.encoded_bytes(tuple(header.shape)))
        total += sizes[-1]
        if total > MOST_BYTES:
            return
    frame.ClearField("chunks")
    for number, (header, size) in enumerate(zip(headers, sizes, strict=True)):
        data = _payload(header, size, choices)
        header.num_bytes, header.crc32 = size, zlib.crc32(data)
        frame.chunks.add(tensor=number, offset=0, data=data)


def mend(frame: Message) -> None:
    """Make the checksums of a frame's headers those of the chunks that came with it."""
    for number, header in enumerate(headers_of(frame)):
        data = b"".join(chunk.data for chunk in frame.chunks if chunk.tensor == number)
        header.crc32 = zlib.crc32(data)


def _payload(header: pb.TensorHeader, size: int, choices: Choices) -> bytes:
    """Bytes of a tensor that is likely to pass, by its role."""
    if header.role == pb.ROLE_ATTENTION_MASK:
        pattern = bytes(byte & 1 for byte in choices.bytes(8)) or b"\x01"
        return (pattern * (size // len(pattern) + 1))[:size]
    if header.role == pb.ROLE_POSITION_IDS:
        first = choices.number()
        start = first if -(2**62) < first < 2**62 else 0
        return (np.arange(size // 8, dtype=np.int64) + start).tobytes()
    if choices.yes():
        noise = choices.bytes(32) or b"\x00"
        return (noise * (size // len(noise) + 1))[:size]
    scale = choices.of((1.0, 1.0, 0.0, 1e-30, 1e10, 1e30, 3e38))
    values = np.random.default_rng(choices.byte()).uniform(-1, 1, size // 4 + 1)
    return (values * scale).astype(np.float32).tobytes()[:size]
