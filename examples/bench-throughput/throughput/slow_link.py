"""A slow link: a TCP proxy in this process that adds delay, limits the rate, and counts.

Each direction is a line of its own. A piece of data waits for its turn, takes its size over the
rate to be sent, and arrives `delay` later; what is on its way is as much as fits, so that a long
line is no narrower than a short one. What waits for its turn is bounded (a router's buffer), and
beyond that the sender is held back by TCP.

Nothing is lost or reordered, and the two TCP connections are local: congestion control and window
scaling of a real path are not emulated. HTTP/2's flow control runs from end to end, and is.
"""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

PIECE = 1 << 14
"""Bytes at most that take their turn together: 1.3 ms at 100 Mbit/s."""
BUFFER_SECONDS = 0.02
"""What may wait for its turn. The loop that moves the data oversleeps by less than this."""
MOST_PIECES = 4096
"""What may be on its way, or at a receiver that does not read."""
SOCKET_BYTES = 1 << 18
"""Receive buffer of each of the link's sockets: what they hold is on no line yet."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One direction."""

    delay: float = 0.0
    """Seconds from the end of sending to arrival: half a round trip."""
    rate: float = float("inf")
    """Bytes a second."""

    @classmethod
    def of(cls, *, round_trip_ms: float, mbit: float) -> "Line":
        """Half of a symmetrical link, in the units in which links are sold."""
        return cls(delay=round_trip_ms / 2000, rate=mbit * 1e6 / 8)


class SlowLink:
    """Connections to `address` reach `target` over two lines. Counts the bytes of all of them."""

    def __init__(self, target: tuple[str, int], up: Line, down: Line) -> None:
        self._target = target
        self._lines = (up, down)
        self._carried = [0, 0]
        self._connections: set[asyncio.Task[None]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        self._listener.setblocking(False)
        host, port = self._listener.getsockname()
        self.address = f"{host}:{port}"
        """`host:port` to connect to."""

    @property
    def upward(self) -> int:
        """Bytes taken so far from those who connected."""
        return self._carried[0]

    @property
    def downward(self) -> int:
        """Bytes taken so far from the target."""
        return self._carried[1]

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take connections on `loop` from now on."""
        loop.add_reader(self._listener, self._accept, loop)

    async def close(self) -> None:
        """Take no more connections, and cut all that there are."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            near, _ = self._listener.accept()
        except OSError:  # it has gone again
            return
        task = loop.create_task(self._connect(near))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: near.close())  # also where the task never began

    async def _connect(self, near: socket.socket) -> None:
        near_in, near_out = await asyncio.open_connection(sock=near)
        ends = [near_out]
        try:
            far_in, far_out = await asyncio.open_connection(*self._target)
            ends.append(far_out)
            far: socket.socket = far_out.get_extra_info("socket")
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(0, near_in, far_out))
                group.create_task(self._carry(1, far_in, near_out))
            for end in ends:
                end.close()  # what is written still arrives
                await end.wait_closed()
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            for end in ends:
                end.transport.abort()  # one end has gone: the other one shall know at once
            await asyncio.gather(*(end.wait_closed() for end in ends), return_exceptions=True)

    async def _carry(
        self, way: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        """One direction until its end, which arrives like the data before it."""
        line, clock = self._lines[way], asyncio.get_running_loop().time
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MOST_PIECES)

        async def arrive() -> None:
            while True:
                due, data = await on_the_way.get()
                await asyncio.sleep(due - clock())
                if not data:
                    sink.write_eof()
                    return
                sink.write(data)
                await sink.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(arrive())
            sent = clock()
            while True:
                data = await source.read(PIECE)
                self._carried[way] += len(data)
                sent = max(sent, clock()) + len(data) / line.rate
                await on_the_way.put((sent + line.delay, data))
                if not data:
                    return
                await asyncio.sleep(max(0.0, sent - BUFFER_SECONDS - clock()))


@contextmanager
def slow_link(port: int, up: Line | None = None, down: Line | None = None) -> Iterator[SlowLink]:
    """A link to `port` of this machine; `down` is as `up` where it is not given.

    Without lines it only counts.
    """
    up = up or Line()
    link = SlowLink(("127.0.0.1", port), up, down or up)
    loop = asyncio.new_event_loop()
    link.open(loop)
    thread = threading.Thread(target=loop.run_forever, name="slow-link")
    thread.start()
    try:
        yield link
    finally:
        asyncio.run_coroutine_threadsafe(link.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
