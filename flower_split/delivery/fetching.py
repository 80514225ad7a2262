"""Fetching a pack: what the cache lacks comes from the server, over as many streams as it takes."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flower_split.delivery.cache import PartCache
from flower_split.delivery.folder import model_folder
from flower_split.delivery.manifest import MAX_MANIFEST_BYTES, Item, Manifest
from flower_split.errors import DeliveryError, TrunkBusyError, TrunkUnavailableError, WireError
from flower_split.transport.grpc.channel import growing_pauses
from flower_split.transport.messages import Ticket

logger = logging.getLogger(__name__)

DEFAULT_LIMIT = 64 << 30
"""Bytes that a silo takes of a pack unless its node config says otherwise."""
FUTILE_STREAMS = 3
"""Streams in a row that may break without a byte received."""
_NOTICE_BYTES = 64 << 20
_NOTICE_SECONDS = 10.0


class DeliveryStream(Protocol):
    """One stream of the server's delivery."""

    def read(self, digest: str, offset: int) -> Iterator[bytes]:
        """The bytes of a part from `offset` to its end; never fewer, or it raises.

        Raises:
            TrunkError: the server refuses it, or the stream broke.
        """
        ...

    def close(self) -> None:
        """End the stream. Can be called twice."""
        ...


OpenStream = Callable[[Ticket], DeliveryStream]


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A model's folder, and what it took to have it."""

    folder: Path
    num_bytes: int
    """Bytes that came from the server."""
    seconds: float
    """Time for all of it: waiting, fetching, verifying."""


def fetch_pack(
    digest: str,
    tickets: Sequence[Ticket],
    open_stream: OpenStream,
    cache: PartCache,
    *,
    limit: int = DEFAULT_LIMIT,
    patience: float = 0.0,
) -> Fetched:
    """A folder with the pack, complete and verified; asks the server for what the cache lacks only.

    Args:
        digest: The pack's digest, as the invitation gave it.
        tickets: Each good for one stream.
        open_stream: Opens a stream with a ticket.
        cache: Where parts are kept.
        limit: Bytes that the whole pack may have.
        patience: Seconds for which a server that has no room is asked again.

    Raises:
        TrunkError: the server refuses, lies, or cannot be reached any more.
        DeliveryError: the pack is above the limit, or the disk is full or not writable.
    """
    started = time.monotonic()
    streams = _Streams(tickets, open_stream, started + patience)
    try:
        manifest = _manifest(digest, cache, streams)
        missing = [item for item in manifest.items.values() if not cache.holds(item)]
        if manifest.total > limit:
            raise DeliveryError(
                f"the silo's part of the model has {manifest.total / (1 << 30):.1f} GiB, and this "
                f"silo takes at most {limit / (1 << 30):.1f}; raise max-download-gib in its node "
                "config if that is right"
            )
        if missing:
            cache.check_room(sum(item.size for item in missing))
            progress = _Progress(sum(item.size for item in missing), streams)
            for item in missing:
                _fetch(item, cache, streams, progress)
    finally:
        streams.close()
    folder = model_folder(cache, digest, manifest)
    return Fetched(folder=folder, num_bytes=streams.num_bytes, seconds=time.monotonic() - started)


class _Streams:
    """Streams, one after the other: a broken one is replaced, as long as that leads on."""

    def __init__(
        self, tickets: Sequence[Ticket], open_stream: OpenStream, busy_until: float
    ) -> None:
        self.num_bytes = 0
        self._busy_until = busy_until
        self._tickets = list(tickets)
        self._open = open_stream
        self._stream: DeliveryStream | None = None
        self._futile = 0

    def read(self, digest: str, offset: int) -> Iterator[bytes]:
        """The bytes of a part from `offset` on, also where streams break in between."""
        for pause in growing_pauses():
            try:
                if self._stream is None:
                    self._stream = self._open(self._tickets[0])
                for data in self._stream.read(digest, offset):
                    offset += len(data)
                    self.num_bytes += len(data)
                    self._futile = 0
                    yield data
                return
            except TrunkBusyError:  # which leaves the ticket good
                self.close()
                if time.monotonic() + pause > self._busy_until:
                    raise
                time.sleep(pause)
            except TrunkUnavailableError as error:
                self.close()
                self._futile += 1
                del self._tickets[0]
                if not self._tickets or self._futile >= FUTILE_STREAMS:
                    raise
                logger.warning("the model's delivery broke off, going on: %s", error)
                time.sleep(pause)

    def close(self) -> None:
        """End the stream that is open, if one is."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


def _manifest(digest: str, cache: PartCache, streams: _Streams) -> Manifest:
    content = cache.read(digest, MAX_MANIFEST_BYTES)
    if content is not None:
        return Manifest.from_bytes(content)
    received = bytearray()
    for data in streams.read(digest, 0):
        received += data
        if len(received) > MAX_MANIFEST_BYTES:
            raise WireError(
                f"the manifest of the model's delivery is above {MAX_MANIFEST_BYTES} bytes"
            )
    content = bytes(received)
    if hashlib.sha256(content).hexdigest() != digest:
        raise WireError("the manifest that the server sent is not the one of the invitation")
    manifest = Manifest.from_bytes(content)
    with cache.incoming(Item(digest=digest, size=len(content))) as part:
        if part is not None:
            part.restart()
            part.add(content)
            part.complete()
    return manifest


def _fetch(item: Item, cache: PartCache, streams: _Streams, progress: "_Progress") -> None:
    with cache.incoming(item) as part:
        while part is not None:
            progress.skip(part.received)
            for data in streams.read(item.digest, part.received):
                part.add(data)
                progress.show()
            if part.complete():
                return
        progress.skip(item.size)


class _Progress:
    """Lines in the log while a large download runs."""

    def __init__(self, total: int, streams: _Streams) -> None:
        self._total = total
        self._streams = streams
        self._first = streams.num_bytes
        self._skipped = 0
        self._shown = time.monotonic()
        if total >= _NOTICE_BYTES:
            logger.info("fetching %d MiB of the model from the server", total >> 20)

    def skip(self, num_bytes: int) -> None:
        """Count what need not be fetched."""
        self._skipped += num_bytes

    def show(self) -> None:
        """Say how far the download is, now and then."""
        now = time.monotonic()
        if now - self._shown >= _NOTICE_SECONDS:
            self._shown = now
            done = self._streams.num_bytes - self._first + self._skipped
            logger.info(
                "fetched %d of %d MiB of the model (%d %%)",
                done >> 20,
                self._total >> 20,
                100 * done // self._total,
            )
