"""The pack: a silo's share of a model's weights, read where it lies and never copied.

A part is one safetensors file that exists nowhere: a header, and stretches of the weights'
own files. So the server needs neither disk nor memory for it, and leaves nothing behind. Only
parts of the pack can be read through it; the files that it holds open are nobody else's.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from flower_split.config.tasks import CAUSAL, Task
from flower_split.delivery.manifest import MAX_SMALL_BYTES, SMALL_FILES, Item, Manifest
from flower_split.errors import WeightsError
from flower_split.segments.loading.extents import Extent, file_header
from flower_split.segments.loading.share import SiloShare, silo_share

logger = logging.getLogger(__name__)

PART_BYTES = 256 << 20
"""Bound of a part of several tensors: what is fetched again when a part is lost."""
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of an open file."""

    descriptor: int
    offset: int
    size: int


class Part:
    """One part of a pack, read at any offset; reads of several threads do not mix."""

    def __init__(self, pieces: Sequence[bytes | Span]) -> None:
        self._pieces = tuple(pieces)
        self.size = sum(len(p) if isinstance(p, bytes) else p.size for p in pieces)
        """Bytes of the whole part."""

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer at the end only.

        Raises:
            WeightsError: a file of the weights has been cut off meanwhile.
        """
        found = bytearray()
        for piece in self._pieces:
            size = len(piece) if isinstance(piece, bytes) else piece.size
            if offset < size and len(found) < length:
                take = min(length - len(found), size - offset)
                found += _read(piece, offset, take)
            offset = max(0, offset - size)
        return bytes(found)


class Pack:
    """What a silo at certain cuts needs of a model; a context manager that closes its files.

    Making it reads the share once, to know its digests. Weights that change afterwards
    are noticed by the silo, which keeps nothing of them.

    Args:
        source: The model, as for `load_client_model`.
        bottom_layers: Layers the silo holds after the embeddings.
        top_layers: Layers the silo holds before the head.
        revision: Commit, tag or branch on the hub; empty for the default branch.
        part_bytes: Bound of a part of several tensors.

    Raises:
        ModelError: as for `load_client_model`.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        bottom_layers: int,
        top_layers: int,
        revision: str = "",
        task: Task = CAUSAL,
        part_bytes: int = PART_BYTES,
    ) -> None:
        started = time.monotonic()
        self._parts: dict[str, Part] = {}
        self._descriptors: dict[Path, int] = {}
        share = silo_share(
            source,
            bottom_layers=bottom_layers,
            top_layers=top_layers,
            revision=revision,
            task=task,
        )
        with ExitStack() as stack:
            self._stack = stack
            files = {name: self._add([self._whole(path)]) for name, path in _small_files(share)}
            weights = tuple(
                self._add([file_header(group), *map(self._span, group)])
                for group in _groups(share, part_bytes)
            )
            self._stack = stack.pop_all()
        self.manifest = Manifest(files=files, weights=weights)
        """What the pack consists of."""
        listed = self.manifest.to_bytes()
        self._parts[self.manifest.digest] = Part([listed])
        logger.info(
            "silos get %d MiB of the model in %d parts; digests took %.1f s",
            self.manifest.total >> 20,
            len(self.manifest.items),
            time.monotonic() - started,
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, hexadecimal: the pack's name."""
        return self.manifest.digest

    def find(self, digest: str) -> Part | None:
        """The part, or the manifest, with this SHA-256; None for everything else there is."""
        return self._parts.get(digest)

    def close(self) -> None:
        """Close the files of the weights. Can be called twice."""
        self._parts.clear()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _add(self, pieces: Sequence[bytes | Span]) -> Item:
        part, digest = Part(pieces), hashlib.sha256()
        for offset in range(0, part.size, _BLOCK):
            digest.update(part.read(offset, _BLOCK))
        self._parts[digest.hexdigest()] = part
        return Item(digest=digest.hexdigest(), size=part.size)

    def _whole(self, path: Path) -> Span:
        descriptor = self._open(path)
        return Span(descriptor=descriptor, offset=0, size=os.fstat(descriptor).st_size)

    def _span(self, extent: Extent) -> Span:
        return Span(descriptor=self._open(extent.path), offset=extent.offset, size=extent.size)

    def _open(self, path: Path) -> int:
        """Descriptor of a file, which stays the same one if another is put in its place."""
        if path not in self._descriptors:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as exc:
                raise WeightsError(f"{path} cannot be read: {exc.strerror}") from exc
            self._stack.callback(os.close, descriptor)
            self._descriptors[path] = descriptor
        return self._descriptors[path]


def _small_files(share: SiloShare) -> Iterator[tuple[str, Path]]:
    for name in sorted(SMALL_FILES):
        path = share.source.folder / name
        if path.is_file() and 0 < path.stat().st_size <= MAX_SMALL_BYTES:
            yield name, path


def _groups(share: SiloShare, part_bytes: int) -> Iterator[list[Extent]]:
    """Tensors that make a part together: of one layer, so that other cuts share the parts."""
    for index in sorted(share.layers, key=lambda index: -1 if index is None else index):
        group: list[Extent] = []
        # The format wants wider elements first, so that every tensor is aligned.
        for extent in sorted(share.layers[index], key=lambda e: (-_bits(e.dtype), e.name)):
            if group and _bytes(group) + extent.size > part_bytes:
                yield group
                group = []
            group.append(extent)
        yield group


def _bits(dtype: str) -> int:
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 8


def _bytes(extents: Iterable[Extent]) -> int:
    return sum(extent.size for extent in extents)


def _read(piece: bytes | Span, offset: int, length: int) -> bytes:
    if isinstance(piece, bytes):
        return piece[offset : offset + length]
    found = os.pread(piece.descriptor, length, piece.offset + offset)
    if len(found) != length:
        raise WeightsError("a file of the weights was cut off while silos fetched it")
    return found
