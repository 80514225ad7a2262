"""A line that does not keep: a TCP proxy that delays, slices, starves, silences, cuts and resets.

It knows bytes and no protocol. What it does is said for each way apart, in bytes that have passed,
so that a fault comes at the same place of a conversation every time.
"""

import asyncio
import math
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

PIECE = 1 << 16
_LINGER_NOT = struct.pack("ii", 1, 0)  # closing then sends RST and drops what waits

End = Literal["silence", "blackhole", "reset", "close"]


@dataclass(frozen=True, kw_only=True)
class Way:
    """What the line does to the bytes of one direction; without arguments it passes them on."""

    delay: float = 0.0
    """Seconds that every piece waits."""
    jitter: float = 0.0
    """Seconds that a piece waits besides, at most."""
    rate: float = math.inf
    """Bytes a second."""
    slices: int = PIECE
    """Bytes of a piece at most."""
    after: int | None = None
    """Bytes after which the line ends; None for never."""
    then: End = "silence"
    """How it ends: nothing passes this way any more (`silence`) or either way (`blackhole`), while
    the sockets stay open; both ends get a reset, or an orderly end."""


class _Line:
    """One connection, both ways."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self.writers = writers
        self.is_dead = False

    def end(self, then: End) -> None:
        if then == "blackhole":
            self.is_dead = True
        elif then == "close":
            for writer in self.writers:
                writer.close()
        elif then == "reset":
            for writer in self.writers:
                with suppress(OSError):
                    writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT
                    )
                writer.transport.abort()


class ChaosProxy:
    """Listens on a port of its own for as long as it is entered, and passes on to `target`.

    Args:
        target: `host:port`.
        up: The way to the target.
        down: The way from it.
        connections: Of how many connections, from the first on, the line is as said; later ones
            pass everything on.
        seed: Of the jitter.
    """

    def __init__(
        self,
        target: str,
        *,
        up: Way | None = None,
        down: Way | None = None,
        connections: int = 1,
        seed: int = 0,
    ) -> None:
        self.up, self.down = up or Way(), down or Way()
        self.sent, self.received = 0, 0
        """Bytes that were passed on, up and down, over all connections."""
        self.accepted = 0
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._faulty = connections
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-proxy")
        self._lines: list[_Line] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self, then: End = "reset") -> None:
        """End the connections that are open now."""
        self._do(self._cut(then))

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        is_faulty = self.accepted <= self._faulty
        try:
            back, forth = await asyncio.open_connection(self._host, self._port)
        except OSError:
            _Line(writer).end("reset")
            return
        for one in (writer, forth):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = _Line(writer, forth)
        self._lines.append(line)
        for pump in (
            self._pump(line, reader, forth, is_faulty, up=True),
            self._pump(line, back, writer, is_faulty, up=False),
        ):
            task = self._loop.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self,
        line: _Line,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        faulty: bool,
        *,
        up: bool,
    ) -> None:
        passed = 0
        with suppress(OSError):
            while True:
                way = (self.up if up else self.down) if faulty else Way()
                left = math.inf if way.after is None else way.after - passed
                if left <= 0:
                    line.end(way.then)
                    return
                piece = await reader.read(int(min(way.slices, left)))
                if line.is_dead:
                    return
                if not piece:
                    writer.close()
                    return
                wait = way.delay + way.jitter * self._random.random() + len(piece) / way.rate
                if wait:
                    await asyncio.sleep(wait)
                writer.write(piece)
                await writer.drain()
                passed += len(piece)
                if up:
                    self.sent += len(piece)
                else:
                    self.received += len(piece)

    async def _cut(self, then: End) -> None:
        for line in self._lines:
            line.end(then)

    async def _end(self) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._cut("reset")
        await asyncio.sleep(0)  # transports take leave in the loop's next turn
