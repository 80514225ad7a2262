"""Content of a control call: a JSON text and tensors, as pieces that are checked as they come."""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from flower_split.errors import WireError
from flower_split.proto import control_pb2 as pb
from flower_split.serialization.tensors import CHUNK_BYTES

MOST_TEXT = 64 << 20
"""Bytes of an answer's text: names of every module of the largest models, and of what belongs to
silos."""
MOST_TENSORS = 1 << 20
_LONGEST_NAME = 1024
_DIGITS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """What a call or its answer has beside its message."""

    text: Any = None
    """JSON values; None for no text."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Float32 on the CPU, in an order that is kept."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing of it."""
        return self.text is None and not self.tensors

    def packed(self) -> tuple[pb.Content | None, bytes]:
        """The message that announces it, and its bytes; None where there is nothing."""
        text = b"" if self.text is None else json.dumps(self.text).encode()
        tensors = b""
        if self.tensors:
            named = {
                f"{number:0{_DIGITS}} {name}": tensor.detach().numpy()
                for number, (name, tensor) in enumerate(self.tensors.items())
            }
            tensors = safetensors.numpy.save(named)
        data = text + tensors
        if not data:
            return None, b""
        header = pb.Content(text_bytes=len(text), tensor_bytes=len(tensors), crc32=zlib.crc32(data))
        return header, data


def pieces(data: bytes) -> Iterator[bytes]:
    """`data` in the pieces in which it travels."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


class ArrivingContent:
    """Collects the pieces of one content; memory is taken as they come.

    Args:
        header: What the first frame announced.
        most_text: Bytes of the text.
        most_tensors: Bytes of the tensors.

    Raises:
        WireError: more is announced.
    """

    def __init__(self, header: pb.Content, *, most_text: int, most_tensors: int) -> None:
        for what, given, most in (
            ("text", header.text_bytes, most_text),
            ("tensors", header.tensor_bytes, most_tensors),
        ):
            if given > most:
                raise WireError(f"{what} of {given} bytes are announced; at most {most} are taken")
        self._header = header
        self._size = header.text_bytes + header.tensor_bytes
        self._data = bytearray()

    @property
    def complete(self) -> bool:
        """Whether all of it has arrived."""
        return len(self._data) == self._size

    def add(self, piece: bytes) -> None:
        """Take the next piece.

        Raises:
            WireError: it is empty, above 1 MiB, or beyond what was announced.
        """
        if not 0 < len(piece) <= CHUNK_BYTES or len(self._data) + len(piece) > self._size:
            raise WireError(
                f"a piece of {len(piece)} bytes after {len(self._data)} of {self._size}"
            )
        self._data += piece

    def content(self) -> Content:
        """What it is.

        Raises:
            WireError: it is not whole, or none.
        """
        if not self.complete:
            raise WireError(f"{len(self._data)} of {self._size} announced bytes have arrived")
        if zlib.crc32(self._data) != self._header.crc32:
            raise WireError("the content has another checksum than the one announced")
        text_bytes = self._header.text_bytes
        text = _read_text(bytes(self._data[:text_bytes])) if text_bytes else None
        tensors = dict[str, Tensor]()
        if self._header.tensor_bytes:
            tensors = _read_tensors(bytes(memoryview(self._data)[text_bytes:]))
        return Content(text=text, tensors=tensors)


def _read_text(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireError("the text of a call is no JSON") from error


def _read_tensors(data: bytes) -> dict[str, Tensor]:
    try:
        found = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WireError(f"the tensors of a call cannot be read: {type(error).__name__}") from error
    if len(found) > MOST_TENSORS:
        raise WireError(f"{len(found)} tensors, at most {MOST_TENSORS} are taken")
    tensors = dict[str, Tensor]()
    for number, given in enumerate(sorted(found)):
        prefix, array = f"{number:0{_DIGITS}} ", found[given]
        name = given.removeprefix(prefix)
        if name == given or len(name) > _LONGEST_NAME or name in tensors:
            raise WireError("the tensors of a call are not numbered, or two have one name")
        if array.dtype != np.float32:
            raise WireError(f"{name[:80]} is {array.dtype}, expected float32")
        tensors[name] = torch.from_numpy(array.copy())
    return tensors
