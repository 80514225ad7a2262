"""The delivery service: serves the parts of a pack, and nothing else, to silos that have a ticket.

It never looks at names, paths or cuts: a request is the digest of a part and an offset, and what
the pack does not list is unknown, whatever it is. Parts are read in one thread of its own, one
piece at a time for all silos, so that downloads leave the event loop and the trunk to sessions.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from flower_split.errors import (
    TokenError,
    TrunkBusyError,
    TrunkUnavailableError,
    WeightsError,
    WireError,
)
from flower_split.proto import trunk_pb2 as pb
from flower_split.serialization.tensors import CHUNK_BYTES
from flower_split.server.grpc.peers import Peer, shown_by
from flower_split.server.tickets import Admission
from flower_split.transport.grpc.handshake import check_version, read_ticket
from flower_split.transport.messages import Ticket

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 1.0


class PartSource(Protocol):
    """One part of a pack."""

    size: int
    """Bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer at the end only."""
        ...


class PackSource(Protocol):
    """What is delivered."""

    @property
    def digest(self) -> str:
        """The pack's name."""
        ...

    def find(self, digest: str) -> PartSource | None:
        """The part with this SHA-256, hexadecimal; None for everything else."""
        ...


class ReplyWriter(Peer, Protocol):
    """What writes replies to the silo, and knows it."""

    async def write(self, message: pb.DeliverReply) -> None:
        """Send one reply; waits while the silo does not keep up."""
        ...


class DeliveryService:
    """Serves delivery streams, for one event loop.

    Args:
        pack: What is delivered; None delivers nothing.
        admit: Decides who may open a stream; None lets everyone in.
        max_streams: Streams that may be open at once.
        idle_timeout: Seconds without any progress after which a stream is closed.
    """

    def __init__(
        self,
        pack: PackSource | None,
        admit: Admission | None,
        *,
        max_streams: int,
        idle_timeout: float,
    ) -> None:
        self._pack = pack
        self._admit = admit
        self._max_streams = max_streams
        self._idle_timeout = idle_timeout
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="trunk-delivery")
        self._streams: dict[object, asyncio.Task[None]] = {}

    @property
    def num_streams(self) -> int:
        """Streams that are open now."""
        return len(self._streams)

    def close(self) -> None:
        """Join the reading thread."""
        self._reader.shutdown()

    async def serve(
        self,
        first: pb.DeliverRequest,
        requests: AsyncIterator[pb.DeliverRequest],
        writer: ReplyWriter,
    ) -> None:
        """Serve one stream, from its first request to its end.

        Raises:
            TrunkError: the stream was refused, or ended by a fault.
        """
        check_version(first.protocol_version)
        ticket = shown_by(writer, read_ticket(first))
        if self._admit is not None:
            self._admit.verify(ticket, "deliver")
        # A silo that comes again has lost its stream, which this end may not have noticed yet.
        if self._admit is None or ticket is None:
            silo: Hashable = object()
        else:
            silo = self._admit.holder(ticket)
        older = self._streams.get(silo)
        if older is None and len(self._streams) >= self._max_streams:
            raise TrunkBusyError(
                "as many silos fetch their part of the model as the trunk lets at once. Try "
                "later, or raise trunk.max-sessions"
            )
        if self._admit is not None:
            self._admit.claim(ticket, "deliver")
        try:
            stream = asyncio.ensure_future(self._answer(first, requests, writer, ticket))
            self._streams[silo] = stream
            if older is not None:
                older.cancel()
            try:
                await self._watched(stream, ticket)
            finally:
                stream.cancel()
                await asyncio.wait([stream])
                if self._streams.get(silo) is stream:
                    del self._streams[silo]
        finally:
            if self._admit is not None:
                self._admit.spend(ticket)

    async def _watched(self, stream: "asyncio.Task[None]", ticket: Ticket | None) -> None:
        """Wait for the stream's end; raises when the host has revoked the ticket meanwhile."""
        while not (await asyncio.wait([stream], timeout=_CHECK_SECONDS))[0]:
            if self._admit is not None:
                self._admit.check(ticket)
        if stream.cancelled():
            raise TokenError("the silo has opened another delivery, which took this one's place")
        stream.result()

    async def _answer(
        self,
        first: pb.DeliverRequest,
        requests: AsyncIterator[pb.DeliverRequest],
        writer: ReplyWriter,
        ticket: Ticket | None,
    ) -> None:
        request: pb.DeliverRequest | None = first
        sent = 0
        try:
            while request is not None:
                sent += await self._send(request, writer)
                async with asyncio.timeout(self._idle_timeout):
                    request = await anext(requests, None)
        except TimeoutError as exc:
            raise TrunkUnavailableError(
                f"the delivery was idle for {self._idle_timeout:g} s and was closed"
            ) from exc
        finally:
            node = "a silo" if ticket is None else f"node {ticket.node_id}"
            logger.info("delivered %.1f MiB to %s", sent / (1 << 20), node)

    async def _send(self, request: pb.DeliverRequest, writer: ReplyWriter) -> int:
        """Send what is asked for; returns the number of bytes."""
        part = None if self._pack is None else self._pack.find(request.digest.hex())
        if part is None or request.offset > part.size:
            raise WireError("there is no such part to deliver, or not so much of it")
        loop, offset, last = asyncio.get_running_loop(), request.offset, False
        while not last:
            async with asyncio.timeout(self._idle_timeout):
                try:
                    data = await loop.run_in_executor(self._reader, part.read, offset, CHUNK_BYTES)
                except (WeightsError, OSError) as exc:
                    logger.error("the model's files cannot be read any more: %s", exc)
                    raise TrunkUnavailableError("the trunk failed; its log says why") from exc
                offset += len(data)
                last = offset >= part.size
                await writer.write(pb.DeliverReply(data=data, last=last))
        return offset - request.offset
